import numpy as np
import pytest
from scipy.stats import binom

from deepscan import Background, detect, scan, scan_individual
from deepscan.detection import _fold_columns, center_pairs
from deepscan.ranks import rank_records
from deepscan.runs import ScanRuns
from deepscan.splits import draw_splits, label_records, permute_labels

SMALL = {"n_clean": 5, "n_anomalous": 5, "n_runs": 6, "n_permutations": 9, "alphas": 10}


def draw_sides(rng, n, n_nodes, *, factors=3):
    """Normal activations of two sides whose nodes share the same few factors."""
    loads = rng.normal(size=(factors, n_nodes))
    return rng.normal(size=(2, n, factors)) @ loads + rng.normal(size=(2, n, n_nodes))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    h0, h1 = rng.normal(size=(30, 50)), rng.normal(size=(30, 50))
    h1[:, :8] += 4
    h1[:, 8:12] -= 4
    return h0, h1


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("scan_kind", ["group", "individual"])
def test_level_under_h0_with_correlated_nodes(paired, scan_kind):
    """Pairs share a topic and nodes share factors, but nothing tells the sides apart."""
    experiments = 200
    rng = np.random.default_rng(1)
    rejected = 0
    p_values = []
    for experiment in range(experiments):
        topic = rng.normal(size=(16, 40)) if paired else 0.0
        h0, h1 = topic + draw_sides(rng, 16, 40)
        runs = detect(
            h0,
            h1,
            pairs=np.arange(16) if paired else None,
            n_clean=4,
            n_anomalous=4,
            n_runs=3,
            n_permutations=19,
            alphas=8,
            restarts=1,
            scan=scan_kind,
            rng=experiment,
        )
        rejected += runs.p_value <= 0.05
        p_values.append(runs.p_value)
    # An exact test at 0.05 rejects Binomial(200, 0.05) of the experiments: within its central 99.9 %.
    low, high = binom.interval(0.999, experiments, 0.05)
    assert low <= rejected <= high
    assert abs(np.mean(p_values) - 0.525) < 4 * np.sqrt(1 / 12 / experiments)


@pytest.mark.parametrize("scan_kind", ["group", "individual"])
@pytest.mark.parametrize("paired", [True, False])
def test_an_effect_has_the_smallest_p_value(data, scan_kind, paired):
    runs = detect(*data, pairs=np.arange(30) if paired else None, **SMALL, scan=scan_kind)
    assert runs.p_value == 0.1
    means = runs.table.groupby("permutation")["score"].mean()
    assert (means[-1] > means.drop(-1)).all()
    assert (runs.node_sign()[:8] == 1).all()
    assert (runs.node_sign()[8:12] == -1).all()
    assert (runs.node_frequency()[:12] > 0.5).all()
    assert runs.table["auroc"].isna().all() == (scan_kind == "group")


def test_p_value_counts_permutations_that_reach_the_observed_mean():
    rng = np.random.default_rng(0)
    h0, h1 = rng.normal(size=(20, 30)), rng.normal(size=(20, 30))
    runs = detect(h0, h1, pairs=np.arange(20), **SMALL)
    means = runs.table.groupby("permutation")["score"].mean()
    assert runs.p_value == (1 + sum(means[k] >= means[-1] for k in range(9))) / 10
    assert runs.p_value > 0.1


def centred(h0, h1):
    """Both sides minus the mean of their pair, row by row."""
    middle = (h0 + h1) / 2
    return h0 - middle, h1 - middle


@pytest.mark.parametrize("tail", ["right", "left", "two-sided", "signed"])
@pytest.mark.parametrize("alphas", [10, "exact"])
@pytest.mark.parametrize("center", ["pairs", None])
def test_runs_equal_scans_of_their_splits(data, tail, alphas, center):
    """The path through ranks against the one through values: p-values of Background, then scan."""
    # Halves of these are exact, so that ties stay ties.
    h0, h1 = (np.round(8 * side) / 8 for side in data)
    options = SMALL | {"alphas": alphas, "n_runs": 4, "n_permutations": 4}
    runs = detect(h0, h1, pairs=np.arange(30), center=center, tail=tail, restarts=3, **options, rng=4)
    values = np.concatenate(centred(h0, h1) if center else [h0, h1])
    observed = label_records(30, 30, np.arange(30))
    splits = draw_splits(observed, 5, 5, 20, 4, 4)
    for row, (permutation, run) in enumerate(zip(runs.table["permutation"], runs.table["run"], strict=True)):
        labels = observed if permutation < 0 else permute_labels(observed, 4, permutation)
        split = splits[run]
        background = values[labels.h0[split.background]]
        members = np.concatenate([labels.h0[split.clean], labels.h1[split.anomalous]])
        x = values[members]
        if tail == "signed":
            p = Background(np.hstack([background, -background])).pvalues(np.hstack([x, -x]))
        else:
            p = Background(background).pvalues(x, tail=tail)
        found = scan(p, alphas=alphas, restarts=3, rng=np.random.default_rng(split.seed))
        assert runs.table["score"][row] == pytest.approx(found.score, rel=1e-12)
        assert runs.table["alpha"][row] == found.alpha
        np.testing.assert_array_equal(runs.nodes[row], np.unique(found.nodes % 50))
        np.testing.assert_array_equal(runs.records[row], np.sort(members[found.records]))
        assert runs.table["n_nodes"][row] == runs.nodes[row].size
        assert (runs.signs[row] != 0).all()
        if tail == "signed":
            for node, sign in zip(runs.nodes[row], runs.signs[row], strict=True):
                assert (node if sign > 0 else node + 50) in found.nodes
        else:
            sides = np.sign(Background(background).sides(x[found.records])[:, found.nodes].sum(0))
            np.testing.assert_array_equal(runs.signs[row][sides != 0], sides[sides != 0])


def test_individual_runs_equal_scans_of_their_splits(data):
    h0, h1 = data
    runs = detect(h0, h1, pairs=np.arange(30), scan="individual", **SMALL, rng=4)
    values = np.concatenate(centred(h0, h1))
    labels = label_records(30, 30, np.arange(30))
    for row, split in enumerate(draw_splits(labels, 5, 5, 20, 6, 4)):
        members = np.concatenate([labels.h0[split.clean], labels.h1[split.anomalous]])
        found = scan_individual(
            Background(values[labels.h0[split.background]]).pvalues(values[members], tail="two-sided")
        )
        scores = np.array([result.score for result in found])
        assert runs.table["score"][row] == pytest.approx(scores[5:].mean() - scores[:5].mean(), rel=1e-9)
        assert runs.records[row].size == 5
        top = members[np.argsort(-scores, kind="stable")[:5]]
        np.testing.assert_array_equal(runs.records[row], np.sort(top))


def test_what_auto_means_is_recorded(data):
    for pairs, center, tail in ((np.arange(30), "pairs", "two-sided"), (None, None, "signed")):
        auto = detect(*data, pairs=pairs, **SMALL)
        assert (auto.config["center"], auto.config["tail"]) == (center, tail)
        assert auto.table.equals(detect(*data, pairs=pairs, center=center, tail=tail, **SMALL).table)
    assert detect(*data, pairs=np.arange(30), center=None, **SMALL).config["center"] is None


def test_centring_does_not_move_with_flips():
    """Flipping sides before or after centring is the same to the last bit, in every type."""
    rng = np.random.default_rng(0)
    for dtype in (np.float16, np.float32, np.float64):
        h0, h1 = (1000 * rng.normal(size=(2, 40, 30))).astype(dtype)
        labels = label_records(40, 40, rng.permutation(40))
        one, two = center_pairs(h0, h1, labels)
        flip = rng.integers(2, size=(40, 1)).astype(bool)
        names = np.arange(40)
        same = label_records(40, 40, names)
        other = center_pairs(np.where(flip, h1, h0), np.where(flip, h0, h1), same)
        plain = center_pairs(h0, h1, same)
        np.testing.assert_array_equal(other[0], np.where(flip, plain[1], plain[0]))
        np.testing.assert_array_equal(other[1], np.where(flip, plain[0], plain[1]))
        np.testing.assert_array_equal(one[labels.h0], -two[labels.h1 - 40])
        middle = (h0[labels.h0].astype(float) + h1[labels.h1 - 40]) / 2
        np.testing.assert_allclose(one[labels.h0], h0[labels.h0] - middle, atol=1e-9)


def test_centring_finds_what_subjects_hide():
    """A shift of half a standard deviation under subjects that move a node five times as much."""
    rng = np.random.default_rng(1)
    subject = 5 * rng.normal(size=(40, 60))
    h0, h1 = subject + 0.5 * rng.normal(size=(2, 40, 60))
    h1[:, :20] += 0.5
    options = {"pairs": np.arange(40), "n_clean": 8, "n_anomalous": 8, "n_runs": 10, "n_permutations": 19}
    found = detect(h0, h1, **options)
    assert found.p_value == 0.05
    assert found.node_frequency()[:20].mean() > 2 * found.node_frequency()[20:].mean()
    assert (found.node_sign()[:20] == 1).mean() >= 0.9
    assert detect(h0, h1, center=None, **options).p_value > 0.05


def test_signed_tail_enters_a_node_with_one_side():
    """Half of the records high and half low on one node stand out two-sided, and not signed."""
    rng = np.random.default_rng(2)
    h0, h1 = rng.normal(size=(2, 40, 30))
    h1[::2, 0] += 9
    h1[1::2, 0] -= 9
    h1[:, 1] -= 9
    options = {"n_clean": 8, "n_anomalous": 8, "n_runs": 10, "n_permutations": 5}
    signed, two_sided = (detect(h0, h1, tail=tail, **options) for tail in ("signed", "two-sided"))
    assert two_sided.node_frequency()[0] == 1
    assert signed.node_frequency()[1] == 1
    assert signed.node_sign()[1] == -1
    assert all(nodes.max(initial=0) < 30 for nodes in signed.nodes)
    assert all(np.array_equal(nodes, np.unique(nodes)) for nodes in signed.nodes)


def test_both_columns_of_a_node_give_it_once():
    # Nodes 0 to 3; both columns of 0, 1 and 3 are chosen, and 2 by its second alone.
    bins = np.array([[1, 5, 9, 4, 9, 2, 0, 3], [1, 5, 9, 4, 9, 2, 0, 5]])
    nodes, signs = _fold_columns(np.array([0, 1, 3, 4, 5, 6, 7]), bins)
    assert nodes.tolist() == [0, 1, 2, 3]
    assert signs.tolist() == [1, -1, -1, 0]  # 3 is left to the mean ranks


def test_ties_of_sides_are_broken():
    rng = np.random.default_rng(3)
    ranks = rank_records(rng.normal(size=(6, 50)), rng.normal(size=(6, 50)))
    background, records = np.arange(6), np.array([7, 9])
    sides = ranks.mean_sides(background, records, np.arange(50))
    place = (ranks.start.astype(int) + ranks.stop) / 2
    expected = np.sign(place[:, records].mean(axis=1) - place[:, background].mean(axis=1))
    np.testing.assert_array_equal(sides, expected)
    runs = detect(np.tile([[0.0], [1.0]], (10, 20)), np.tile([[1.0], [0.0]], (10, 20)), **SMALL, center=None)
    assert all((signs != 0).all() for signs in runs.signs)


def test_background_and_scanned_records_share_no_pair():
    names = np.array([f"p{i}" for i in range(12)])
    rng = np.random.default_rng(0)
    one, two = rng.permutation(12), rng.permutation(12)
    labels = label_records(12, 12, np.concatenate([names[one], names[two]]))
    pair_of = np.concatenate([names[one], names[two]])
    np.testing.assert_array_equal(pair_of[labels.h0], pair_of[labels.h1])
    for permutation in range(5):
        flipped = permute_labels(labels, 0, permutation)
        assert set(flipped.h0) | set(flipped.h1) == set(range(24))
        np.testing.assert_array_equal(pair_of[flipped.h0], pair_of[flipped.h1])
        for split in draw_splits(labels, 3, 3, 6, 20, 0):
            scanned = set(pair_of[flipped.h0[split.clean]]) | set(pair_of[flipped.h1[split.anomalous]])
            assert len(scanned) == 6
            assert not scanned & set(pair_of[flipped.h0[split.background]])


def test_flips_depend_on_the_seed_and_pairs_alone(data):
    h0, h1 = data
    options = {"n_clean": 5, "n_anomalous": 5, "alphas": 10, "pairs": np.arange(30), "rng": 8}
    few = detect(h0, h1, n_runs=2, n_permutations=3, **options)
    many = detect(h0, h1, n_runs=5, n_permutations=6, **options)
    joined = few.table.merge(many.table, on=["permutation", "run"], suffixes=("", "_many"))
    assert len(joined) == len(few.table)
    np.testing.assert_array_equal(joined["score"], joined["score_many"])
    labels = label_records(30, 30, np.arange(30))
    assert not np.array_equal(permute_labels(labels, 8, 0).h0, permute_labels(labels, 8, 1).h0)
    assert not np.array_equal(permute_labels(labels, 8, 0).h0, permute_labels(labels, 9, 0).h0)


def test_order_of_the_rows_does_not_matter_with_pairs(data):
    h0, h1 = data
    rng = np.random.default_rng(5)
    one, two = rng.permutation(30), rng.permutation(30)
    plain = detect(h0, h1, pairs=np.arange(30), **SMALL)
    moved = detect(h0[one], h1[two], pairs=np.concatenate([one, two]), **SMALL)
    assert plain.p_value == moved.p_value
    np.testing.assert_array_equal(plain.table["score"], moved.table["score"])
    np.testing.assert_array_equal(plain.node_frequency(), moved.node_frequency())
    np.testing.assert_array_equal(plain.permuted_sign(), moved.permuted_sign())


@pytest.mark.parametrize("scan_kind", ["group", "individual"])
@pytest.mark.parametrize(("center", "tail"), [(None, "two-sided"), (None, "signed"), ("pairs", "two-sided")])
def test_answer_does_not_depend_on_workers_and_monotone_transforms(data, scan_kind, center, tail):
    """With pairs, transforms of the values would change the means of pairs: there, only the unit may change."""
    h0, h1 = data
    options = SMALL | {"pairs": np.arange(30), "scan": scan_kind, "restarts": 4, "center": center, "tail": tail}
    one = detect(h0, h1, **options)
    bend = (lambda x: 4 * x) if center else np.exp
    for other in (detect(h0, h1, n_jobs=2, **options), detect(bend(h0), bend(h1), **options)):
        assert one.p_value == other.p_value
        assert one.table.equals(other.table)
        for name in ("nodes", "records", "signs"):
            for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
                np.testing.assert_array_equal(a, b)


def test_other_backends_of_joblib_apply(data):
    from joblib import parallel_config

    options = SMALL | {"pairs": np.arange(30)}
    threads = detect(*data, **options)
    with parallel_config(backend="loky", n_jobs=2):
        processes = detect(*data, n_jobs=2, **options)
    assert threads.table.equals(processes.table)


def test_permuted_summaries(data):
    runs = detect(*data, pairs=np.arange(30), **SMALL)
    frequency, sign = runs.permuted_frequency(), runs.permuted_sign()
    assert frequency.shape == sign.shape == (9, 50)
    for permutation in range(9):
        rows = np.flatnonzero(runs.table["permutation"] == permutation)
        for node in range(50):
            chosen = [row for row in rows if node in runs.nodes[row]]
            assert frequency[permutation, node] == pytest.approx(len(chosen) / 6)
            total = sum(int(runs.signs[row][runs.nodes[row] == node][0]) for row in chosen)
            if total:
                assert sign[permutation, node] == np.sign(total)
            elif chosen:
                best = max(chosen, key=lambda row: (runs.table["score"][row], -row))
                assert sign[permutation, node] == runs.signs[best][runs.nodes[best] == node][0]
            else:
                assert sign[permutation, node] == 0


def test_a_generator_is_replayed_from_the_recorded_seed(data):
    drawn = detect(*data, **SMALL, rng=np.random.default_rng(5))
    again = detect(*data, **SMALL, rng=drawn.config["seed"])
    assert drawn.table.equals(again.table)
    assert drawn.config["sizes"] == [30, 30]
    assert drawn.config["n_nodes"] == 50


def test_default_background_is_all_that_is_left(data):
    assert detect(*data, pairs=np.arange(30), **SMALL).config["n_background"] == 20
    assert detect(*data, **SMALL).config["n_background"] == 25
    assert detect(*data, **SMALL, n_background=7).config["n_background"] == 7
    assert isinstance(detect(*data, **(SMALL | {"n_permutations": 0})), ScanRuns)


PAIRS = np.arange(30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"pairs": PAIRS, "n_clean": 15, "n_anomalous": 15},
            "n_clean \\+ n_anomalous is 30, which leaves no background",
        ),
        ({"n_clean": 30}, "n_clean is 30, which leaves no background"),
        ({"n_anomalous": 31}, "n_anomalous is 31, more than the 30 records of h1"),
        ({"pairs": PAIRS, "n_clean": 5, "n_anomalous": 5, "n_background": 21}, "n_background is 21, but"),
        ({"n_background": 0}, "n_background is 0"),
        ({"pairs": np.arange(29)}, "pairs has shape"),
        ({"pairs": np.zeros(30)}, "pairs: 0.0 has 30 records in h0; expected one"),
        ({"pairs": np.concatenate([PAIRS, PAIRS + 1])}, "has 0 records in h0"),
        ({"tail": "up"}, "tail is 'up'"),
        ({"center": "pairs"}, "center is 'pairs' and there are none"),
        ({"center": "mean"}, "center is 'mean'"),
        ({"score": "zz"}, "score is 'zz'"),
        ({"scan": "single"}, "scan is 'single'"),
        ({"n_permutations": -1}, "n_permutations is -1"),
        ({"alpha_max": 2.0}, "alpha_max is 2.0"),
        ({"rng": 1.5}, "rng is 1.5"),
    ],
)
def test_bad_input_is_named(data, options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        detect(*data, **options)


def test_sides_need_the_same_nodes(data, unchecked):
    h0, h1 = data
    with pytest.raises(ValueError, match="h1 has 49 nodes and h0 50"):
        detect(h0, h1[:, 1:])
    with pytest.raises(ValueError, match="h1 holds NaN or inf"):
        detect(h0, np.where(h1 > 3, np.nan, h1))
