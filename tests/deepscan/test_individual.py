import json
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepscan import scan_individual
from deepscan.scores import SCORES

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "scan_golden.npz")
ENTRIES = [entry for entry in json.loads(GOLDEN["meta"].tobytes()) if "individual_row" in entry]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["key"])
def test_golden_results(entry):
    p = GOLDEN[f"p{entry['case']}"]
    found = scan_individual(p, score=entry["score_function"], alpha_max=entry["alpha_max"])[entry["individual_row"]]
    assert found.score == pytest.approx(entry["score"], rel=1e-9)
    assert found.alpha == pytest.approx(entry["alpha"], rel=1e-12)
    np.testing.assert_array_equal(found.nodes, GOLDEN[f"{entry['key']}_nodes"])
    np.testing.assert_array_equal(found.records, [entry["individual_row"]])


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.sampled_from(("bj", "hc", "ks")),
    st.sampled_from((0.3, 0.5, 0.9)),
)
@settings(deadline=None)
def test_nothing_beats_it(numerators, score, alpha_max):
    """Every set of nodes, at every p-value as threshold."""
    p = np.array(numerators) / 12
    nodes = range(p.size)
    levels = [level for level in np.unique(p) if level <= alpha_max + 1e-12]
    best = max(
        (
            SCORES[score](np.array([(p[list(chosen)] <= level).sum()]), np.array([len(chosen)]), level)[0]
            for chosen in chain.from_iterable(combinations(nodes, size) for size in range(1, p.size + 1))
            for level in levels
        ),
        default=0.0,
    )
    found = scan_individual(p[None], score=score, alpha_max=alpha_max)[0]
    assert found.score == pytest.approx(best, rel=1e-12)
    if found.nodes.size:
        small = (p[found.nodes] <= found.alpha + 1e-12).sum()
        reproduced = SCORES[score](np.array([small]), np.array([found.nodes.size]), found.alpha)[0]
        assert reproduced == pytest.approx(found.score, rel=1e-12)


def test_records_are_scanned_by_themselves():
    p = np.random.default_rng(0).integers(1, 30, size=(17, 50)) / 30
    together = scan_individual(p)
    assert len(together) == 17
    for i, found in enumerate(together):
        alone = scan_individual(p[i : i + 1])[0]
        assert (found.score, found.alpha) == (alone.score, alone.alpha)
        np.testing.assert_array_equal(found.nodes, alone.nodes)


def test_zeros_and_records_without_small_pvalues():
    zero, none = scan_individual(np.array([[0.0, 0.0, 1.0], [0.6, 0.7, 1.0]]))
    assert np.isfinite(zero.score)
    np.testing.assert_array_equal(zero.nodes, [0, 1])
    assert none.score == 0
    assert np.isnan(none.alpha)
    assert none.nodes.size == none.records.size == 0


@pytest.mark.parametrize(
    ("p", "options", "message"),
    [
        (np.array([[0.1, np.nan]]), {}, "p holds NaN"),
        (np.array([[0.1, 1.1]]), {}, "p holds values from 0.1 to 1.1"),
        (np.array([[0.1, 0.2]]), {"alpha_max": 1.0}, "alpha_max is 1.0"),
    ],
)
def test_bad_input_is_named(p, options, message):
    with pytest.raises(ValueError, match=message):
        scan_individual(p, **options)
