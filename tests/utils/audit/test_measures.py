import re
from pathlib import Path

import numpy as np
import pytest
from originals import write_runs
from sklearn.metrics import roc_auc_score

from deepscan import detect
from utils.audit.measures import expected_sizes, profile_table, score_table, set_table, source_table
from utils.audit.sources import Source, read_sources

ORIGINALS = Path(__file__).parents[4] / "shared" / "data" / "deepscan-output"


@pytest.fixture
def source(tmp_path):
    mixed = write_runs(tmp_path / "adv_output_tea.txt", planted=[3, 199], shift=1.0)
    clean = write_runs(tmp_path / "clean_output_tea.txt", n_runs=15, seed=1, clean=True)
    return read_sources([mixed, clean])[0][0]


@pytest.fixture(scope="module")
def flipped():
    rng = np.random.default_rng(0)
    h0, h1 = rng.normal(size=(2, 40, 30))
    h1[:, :10] += 1.0
    runs = detect(h0, h1, n_clean=8, n_anomalous=6, n_runs=12, n_permutations=9, alphas=10)
    sizes = {"n_clean": 8, "n_anomalous": 6, "first_anomalous": 40}
    return Source("a", runs, "parquet", "flipped", **sizes), (h0, h1)


def read_lines(path: Path) -> list[dict]:
    """The file as text, without the reader."""
    rows = []
    for line in path.read_text().splitlines():
        score, precision, recall, _, _, _, nodes, records = line.split(" ")
        held = [int(value) for value in records.split(",")]
        row = {"score": float(score), "precision": precision, "recall": recall, "records": held}
        rows.append(row | {"nodes": {int(value) for value in nodes.split(",")}})
    return rows


def test_precision_and_recall_from_the_records(source, tmp_path):
    lines = read_lines(tmp_path / "adv_output_tea.txt")
    hits = [sum(record >= 8 for record in line["records"]) for line in lines]
    table = score_table([source])
    mixed = table[table["kind"] == "mixed"]
    precision = [hit / len(line["records"]) for hit, line in zip(hits, lines, strict=True)]
    np.testing.assert_allclose(mixed["precision"], precision)
    np.testing.assert_allclose(mixed["recall"], np.array(hits) / 8)
    assert table.loc[table["kind"] == "clean", ["precision", "recall"]].isna().all(axis=None)
    row = source_table([source]).iloc[0]
    assert row["precision"] == pytest.approx(np.mean(precision))
    np.testing.assert_allclose([row["precision_low"], row["precision_high"]], np.quantile(precision, [0.05, 0.95]))
    assert (row["n_otherwise"], row["chance"]) == (0, 0.5)
    # Indices of text files are places in a sample, so that nothing can be resampled.
    assert row["pooled_precision"] == pytest.approx(sum(hits) / sum(len(line["records"]) for line in lines))
    assert np.isnan(row["pooled_precision_low"])


def test_stated_shares_that_the_records_contradict(tmp_path):
    path = write_runs(tmp_path / "a.txt", n_runs=6)
    lines = path.read_text().splitlines()
    # As a file whose anomalous records come first states them: as consistent by themselves.
    for i in (0, 4):
        fields = lines[i].split(" ")
        records = [int(value) for value in fields[7].split(",")]
        hits = sum(record < 8 for record in records)
        assert hits != sum(record >= 8 for record in records)
        fields[1:3] = str(hits / len(records)), str(hits / 8)
        lines[i] = " ".join(fields)
    path.write_text("\n".join(lines))
    assert source_table(read_sources([path])[0])["n_otherwise"].tolist() == [2]


def test_auroc_is_that_of_scikit_learn_and_its_interval_covers_it(source, flipped):
    for held, _ in ((source, None), flipped):
        table = held.runs.table
        row = source_table([held]).iloc[0]
        assert row["auroc"] == pytest.approx(roc_auc_score(table["kind"] == "mixed", table["score"]))
        assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
        assert row["auroc_high"] <= 1


def test_the_interval_of_flipped_sides_resamples_whole_permutations(flipped):
    """The runs of a permutation go together: resampling by hand gives the same interval."""
    source, _ = flipped
    table, rng = source.runs.table, np.random.default_rng(1)
    mixed = table.loc[table["kind"] == "mixed", "score"].to_numpy()
    null = [own["score"].to_numpy() for _, own in table[table["kind"] == "null"].groupby("permutation")]
    drawn = []
    for _ in range(2000):
        positive = rng.choice(mixed, mixed.size)
        negative = np.concatenate([null[i] for i in rng.integers(len(null), size=len(null))])
        drawn.append(roc_auc_score([1] * len(positive) + [0] * len(negative), [*positive, *negative]))
    row = source_table([source]).iloc[0]
    np.testing.assert_allclose([row["auroc_low"], row["auroc_high"]], np.quantile(drawn, [0.025, 0.975]), atol=0.02)


def test_clean_runs_that_are_one_sample_give_no_interval(tmp_path):
    mixed, clean = write_runs(tmp_path / "adv_output_a.txt", shift=9.0), tmp_path / "clean_output_a.txt"
    line = write_runs(tmp_path / "one.txt", n_runs=1, clean=True).read_text()
    clean.write_text(line * 10)
    row = source_table(read_sources([mixed, clean])[0]).iloc[0]
    assert (row["n_null_runs"], row["n_distinct_null"], row["auroc"]) == (10, 1, 1.0)
    assert np.isnan(row["auroc_low"])


def test_the_interval_over_records_is_that_of_resampled_records(flipped):
    source, _ = flipped
    rows = source.rows("mixed")
    counts = np.bincount(np.concatenate([source.runs.records[i] for i in rows]), minlength=80)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        wrong = counts[rng.integers(40, size=40)].sum()
        right = counts[40 + rng.integers(40, size=40)].sum()
        drawn.append(right / (right + wrong))
    row = source_table([source]).iloc[0]
    found = row["pooled_precision_low"], row["pooled_precision_high"]
    np.testing.assert_allclose(found, np.quantile(drawn, [0.025, 0.975]), atol=0.02)
    assert found[0] < row["pooled_precision"] < found[1]


def test_node_sets_by_share(source, tmp_path):
    lines = {
        kind: read_lines(tmp_path / f"{name}_output_tea.txt") for kind, name in (("mixed", "adv"), ("clean", "clean"))
    }
    table = set_table([source], [0.0, 0.1, 0.5, 1.0])
    for row in table.itertuples():
        runs = lines[str(row.kind)]
        counts = [sum(node in line["nodes"] for line in runs) for node in range(200)]
        assert row.size == sum(count > 0 if row.share == 0 else count >= row.share * len(runs) for count in counts)
        assert row.n_runs == len(runs)
    assert table["size"].iloc[3] == 2  # those that are planted
    profile = profile_table([source])
    own = profile[(profile["kind"] == "mixed") & (profile["share"] == 0.5)]
    assert own["size"].tolist() == [table["size"].iloc[2]]


def test_a_share_that_floating_point_puts_above_a_number_of_runs(tmp_path):
    """0.1 · 30 is more than 3."""
    path = write_runs(tmp_path / "a.txt", n_runs=30)
    assert set_table(read_sources([path])[0], [0.1])["least_runs"].tolist() == [3]


def test_expected_sizes_are_those_of_redrawn_runs():
    sizes, rng = np.array([5, 20, 12, 30]), np.random.default_rng(0)
    drawn = np.zeros((4000, 4))
    for row in drawn:
        counts = np.bincount(np.concatenate([rng.choice(40, size, replace=False) for size in sizes]), minlength=40)
        row[:] = [(counts >= least).sum() for least in (1, 2, 3, 4)]
    np.testing.assert_allclose(expected_sizes(sizes, 40, [1, 2, 3, 4]), drawn.mean(axis=0), atol=0.15)
    assert expected_sizes(sizes, 40, [5]).tolist() == [0]


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="no output of the original here")
def test_the_published_files_state_what_their_records_give():
    sources, _ = read_sources(sorted(ORIGINALS.glob("*_output_*")))
    table = source_table(sources).set_index("source")
    assert table["n_otherwise"].tolist() == [0, 0]
    for name, file in (
        ("anti-immigration_hc", "adv_output_anti-immigration_hc.txt"),
        ("antiLGBTQrights", "adv_output_antiLGBTQrights.out"),
    ):
        stated = [float(re.split(" ", line)[1]) for line in (ORIGINALS / file).read_text().splitlines()]
        assert table.loc[name, "precision"] == pytest.approx(np.mean(stated))
    # All published clean runs are one sample.
    assert table.loc["anti-immigration_hc", "n_distinct_null"] == 1
    assert np.isnan(table.loc["anti-immigration_hc", "auroc_low"])
