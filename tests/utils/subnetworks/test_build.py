import numpy as np
import pytest
from tiny import ARCHITECTURES

from utils.subnetworks.build import PersonaMask, calibrate, contrastive_masks, persona_mask
from utils.subnetworks.linears import find_linears

POSITIVE = ["I like cats.", "People should keep what they earn, and so do I.", "The state ought to help."]
NEGATIVE = ["I like dogs and cats and dogs.", "No.", "Those in need are many, and what of it?"]
QUIET = {"progress": False}


@pytest.fixture
def calibrated(tiny):
    """Makes a tiny model and a calibration of it."""

    def make(kind="llama", **changes):
        lm = tiny(kind, **changes)
        return lm, calibrate(lm, POSITIVE, NEGATIVE, **QUIET)

    return make


def reference_factor(calibration, name, score, side, tau=1.0, length_normalised=True):
    """What |W| is multiplied by, from the definitions, straight from the sums."""
    other = "negative" if side == "positive" else "positive"
    moments = {}
    for each in (side, other):
        total, squares, norms, rates, rate_squares = calibration.sums[each][name]
        n, tokens = calibration.n_statements[each], calibration.n_tokens[each]
        per_token = total / tokens, squares / tokens - (total / tokens) ** 2
        if length_normalised:
            per_statement = rates / n, rate_squares / n - (rates / n) ** 2
        else:
            per_statement = norms / n, squares / n - (norms / n) ** 2
        moments[each] = per_token, per_statement, np.sqrt(squares)
    (own_token, own, norm), (other_token, others, _) = moments[side], moments[other]
    if score == "magnitude":
        return np.ones_like(norm)
    if score == "wanda":
        return norm
    if score == "disjoint":
        return abs(own_token[0] - other_token[0]) / np.sqrt(own_token[1] + other_token[1] + 1e-12)
    z = (own[0] - others[0]) / np.sqrt(own[1] + others[1] + 1e-12)
    return np.maximum(z, 0) if score == "relu" else np.log1p(np.exp(z / tau))


def best(scores, seconds, k):
    """Places of the k best by sorting: larger score, then larger second score, then first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], -seconds[i], i))
    chosen = np.zeros(len(scores), bool)
    chosen[order[:k]] = True
    return chosen


def score_matrices(lm, calibration, linear, score, side, **options):
    weight = linear.weight(lm).double().abs().numpy()
    rms = np.sqrt(calibration.sums[side][linear.name][1] / calibration.n_tokens[side])
    return weight * reference_factor(calibration, linear.name, score, side, **options), weight * rms


@pytest.mark.parametrize("kind", ["llama", "gpt-2", "falcon", "phi-3"])
@pytest.mark.parametrize("score", ["magnitude", "wanda", "relu", "softplus"])
@pytest.mark.parametrize("side", ["positive", "negative"])
def test_rows_keep_what_a_plain_float64_reference_keeps(calibrated, kind, score, side):
    lm, calibration = calibrated(kind)
    mask = persona_mask(lm, calibration, sparsity=0.6, score=score, side=side, **QUIET)
    assert set(mask.bits) == set(find_linears(lm))
    for linear in mask.bits:
        scores, seconds = score_matrices(lm, calibration, linear, score, side)
        k = int((1 - 0.6) * linear.shape[1] + 1e-9)
        expected = [best(a, b, k) for a, b in zip(scores, seconds, strict=True)]
        assert np.array_equal(mask.kept(linear), np.stack(expected))


@pytest.mark.parametrize("options", [{"tau": 0.2}, {"length_normalised": False}])
def test_options_of_the_contrast(calibrated, options):
    lm, calibration = calibrated()
    mask = persona_mask(lm, calibration, score="softplus", **options, **QUIET)
    default = persona_mask(lm, calibration, score="softplus", **QUIET)
    assert any(not np.array_equal(mask.kept(linear), default.kept(linear)) for linear in mask.bits)
    for linear in mask.bits:
        scores, seconds = score_matrices(lm, calibration, linear, "softplus", "positive", **options)
        expected = [best(a, b, linear.shape[1] // 2) for a, b in zip(scores, seconds, strict=True)]
        assert np.array_equal(mask.kept(linear), np.stack(expected))


@pytest.mark.parametrize("score", ["wanda", "relu"])
@pytest.mark.parametrize("group", ["layer", "global"])
def test_larger_groups_keep_what_a_plain_reference_keeps(calibrated, monkeypatch, group, score):
    monkeypatch.setattr("utils.subnetworks.build._BLOCK", 100)  # several blocks a layer
    lm, calibration = calibrated()
    mask = persona_mask(lm, calibration, sparsity=0.7, group=group, score=score, **QUIET)
    both = [[part.ravel() for part in score_matrices(lm, calibration, each, score, "positive")] for each in mask.bits]
    kept = [mask.kept(linear).ravel() for linear in mask.bits]
    if group == "global":
        both, kept = [[np.concatenate(parts) for parts in zip(*both, strict=True)]], [np.concatenate(kept)]
    for (scores, seconds), found in zip(both, kept, strict=True):
        assert np.array_equal(found, best(scores, seconds, int(0.3 * len(scores) + 1e-9)))


@pytest.mark.parametrize("score", ["wanda", "random", "softplus"])
def test_blocks_do_not_change_the_mask(calibrated, monkeypatch, score):
    lm, calibration = calibrated()
    whole = persona_mask(lm, calibration, score=score, **QUIET)
    monkeypatch.setattr("utils.subnetworks.build._BLOCK", 100)
    parts = persona_mask(lm, calibration, score=score, **QUIET)
    assert all(np.array_equal(whole.bits[linear], parts.bits[linear]) for linear in whole.bits)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
@pytest.mark.parametrize("sparsity", [0.5, 0.83])
def test_disjoint_masks_are_disjoint_and_full(calibrated, kind, sparsity):
    lm, calibration = calibrated(kind)
    a, b = contrastive_masks(lm, calibration, sparsity=sparsity, score="disjoint", **QUIET)
    for linear in a.bits:
        k = int((1 - sparsity) * linear.shape[1] + 1e-9)
        assert not (a.kept(linear) & b.kept(linear)).any()
        assert (a.kept(linear).sum(1) == k).all()
        assert (b.kept(linear).sum(1) == k).all()
        scores, seconds = score_matrices(lm, calibration, linear, "disjoint", "negative")
        free = np.where(a.kept(linear), -1, scores)
        assert np.array_equal(b.kept(linear)[0], best(free[0], seconds[0], k))


@pytest.mark.parametrize("group", ["layer", "global"])
def test_disjoint_masks_of_larger_groups(calibrated, group):
    lm, calibration = calibrated()
    a, b = contrastive_masks(lm, calibration, score="disjoint", group=group, **QUIET)
    assert not any((a & b).table()["kept"])
    assert a.table()["kept"].sum() == b.table()["kept"].sum() == a.table()["weights"].sum() // 2


def test_contrastive_masks_lean_apart(calibrated):
    """Each side keeps other inputs; the relu masks agree less than independent ones would."""
    lm, calibration = calibrated()
    a, b = contrastive_masks(lm, calibration, score="relu", **QUIET)
    assert [a.config["side"], b.config["side"]] == ["positive", "negative"]
    table = a.overlap(b)
    assert (table["jaccard"] < table["expected_jaccard"]).all()


def test_random_masks_follow_the_seed(calibrated):
    lm, calibration = calibrated()
    a, b, c = (persona_mask(lm, calibration, score="random", rng=seed, **QUIET) for seed in (1, 1, 2))
    assert (a.jaccard(b) == 1).all()
    assert abs(a.jaccard(c).mean() - 1 / 3) < 0.05


def test_scope_and_layers(calibrated):
    lm, calibration = calibrated()
    mask = persona_mask(lm, calibration, scope="mlp", layers=[2, 3], **QUIET)
    assert {(linear.part, linear.layer) for linear in mask.bits} == {("mlp", 2), ("mlp", 3)}


def test_sparsity_zero_keeps_everything(calibrated):
    lm, calibration = calibrated()
    assert persona_mask(lm, calibration, sparsity=0.0, **QUIET).sparsity == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"in \[0, 1\)"),
        ({"sparsity": -0.5}, r"in \[0, 1\)"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"layers": [9]}, "9"),
        ({"score": "best"}, "unknown score 'best'"),
        ({"side": "left"}, "unknown side 'left'"),
        ({"group": "column"}, "unknown group 'column'"),
        ({"scope": "heads"}, "unknown scope 'heads'"),
    ],
)
def test_bad_options(calibrated, unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        persona_mask(*calibrated(), **options, **QUIET)


def test_disjoint_needs_half(calibrated):
    with pytest.raises(ValueError, match="cannot be disjoint"):
        contrastive_masks(*calibrated(), sparsity=0.4, score="disjoint", **QUIET)


def test_calibration_of_another_model(calibrated):
    _, calibration = calibrated()
    other, _ = calibrated(seed=5)
    with pytest.raises(ValueError, match="calibrate anew"):
        persona_mask(other, calibration, **QUIET)


def test_statements_are_remembered(calibrated):
    mask: PersonaMask = persona_mask(*calibrated(), **QUIET)
    assert len(mask.seen) == len({*POSITIVE, *NEGATIVE})
