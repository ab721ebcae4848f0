import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA

from utils.layers.reduction import reduce
from utils.layers.separation import reduce as exported

METHODS = ["pca", "umap", "tsne", "lda"]


def make_acts(values, *, personas=1):
    """Activations of one layer with labels, directions in turn."""
    n = len(values)
    coords = {
        "direction": ("statement", np.array(["positive", "negative"] * n)[:n]),
        "persona": ("statement", np.array([f"p{i * personas // n}" for i in range(n)])),
        "topic": ("statement", np.array(["t"] * n)),
        "pair": ("statement", np.array([f"q{i // 2}" for i in range(n)])),
        "statement": [f"s{i}" for i in range(n)],
        "layer": 3,
    }
    return xr.DataArray(values, dims=("statement", "node"), coords=coords)


def draw(n=40, d=12, *, effect=0.0, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(4, 1, d) + 100
    x[::2, -1] += effect
    return x


def make_layers(*values):
    return xr.concat([make_acts(x) for x in values], dim=xr.Variable("layer", np.arange(len(values)) + 4))


@pytest.mark.parametrize(("n", "d", "components"), [(40, 12, 2), (20, 100, 3)])
def test_pca_is_that_of_scikit_learn_up_to_sign(n, d, components):
    x = draw(n, d)
    frame = reduce(make_acts(x.astype(np.float32)), n_components=components)
    model = PCA(components, svd_solver="full")
    expected = model.fit_transform(x.astype(np.float32).astype(float))
    points = frame[[f"x{i + 1}" for i in range(components)]].to_numpy()
    np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(frame.attrs["explained"], model.explained_variance_ratio_, rtol=1e-9)


def test_pca_keeps_distances():
    """All components of centred data in the plane: a rotation."""
    x = draw(15, 2)
    points = reduce(make_acts(x))[["x1", "x2"]].to_numpy()
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), np.linalg.norm(x - x.mean(0), axis=1))


@pytest.mark.parametrize("method", METHODS)
def test_two_calls_give_the_same(method):
    acts = make_acts(draw(effect=5.0))
    first, second = (reduce(acts, method=method, rng=3) for _ in range(2))
    assert first.equals(second)
    assert np.isfinite(first.filter(regex=r"^x\d$")).all(axis=None)


@pytest.mark.parametrize("method", METHODS)
def test_the_largest_value_of_each_axis_is_positive(method):
    for sign in (1, -1):
        points = reduce(make_acts(sign * draw(30, 6, effect=3.0)), method=method).filter(regex=r"^x\d$").to_numpy()
        assert points.shape[1] == (1 if method == "lda" else 2)
        assert (points[np.abs(points).argmax(0), np.arange(points.shape[1])] > 0).all()


def test_mirrored_data_give_the_same_picture():
    x = draw(30, 6)
    left, right = (reduce(make_acts(values))[["x1", "x2"]] for values in (x, -x))
    np.testing.assert_allclose(left, right, atol=1e-9)


def test_labels_go_with_their_rows():
    x = draw(20, 5)
    x[7] += 1000
    frame = reduce(make_acts(x))
    assert frame["x1"].abs().idxmax() == 7
    assert frame.loc[7, ["id", "direction", "pair"]].tolist() == ["s7", "negative", "q3"]
    assert frame["persona"].eq("p0").all()


@pytest.mark.parametrize("method", ["pca", "umap", "tsne"])
def test_three_dimensions(method):
    frame = reduce(make_acts(draw(30, 6)), method=method, n_components=3)
    assert list(frame)[:3] == ["x1", "x2", "x3"]


def test_umap_and_tsne_keep_far_groups_apart():
    x = draw(60, 10)
    x[:30] += 200
    for method in ("umap", "tsne"):
        points = reduce(make_acts(x), method=method)[["x1", "x2"]].to_numpy()
        distance = np.linalg.norm(points[:, None] - points[None], axis=2)
        np.fill_diagonal(distance, np.inf)
        assert ((distance.argmin(1) < 30) == (np.arange(60) < 30)).all()


def test_lda_separates_what_differs_and_by_the_labels_asked_for():
    x = draw(200, 12, effect=60.0)
    x[:100, 0] += 100
    acts = make_acts(x, personas=2)
    by_direction = reduce(acts, method="lda")
    by_persona = reduce(acts, method="lda", labels="persona")
    for frame, label in ((by_direction, "direction"), (by_persona, "persona")):
        sides = [side["x1"] for _, side in frame.groupby(label)]
        assert max(sides[0].min(), sides[1].min()) > min(sides[0].max(), sides[1].max())
    assert list(by_direction.filter(regex=r"^x\d$")) == ["x1"]


def test_lda_does_not_separate_noise():
    """More nodes than statements and random labels: without the PCA before it, LDA would tell them apart perfectly."""
    x = np.random.default_rng(0).normal(size=(60, 500))
    frame = reduce(make_acts(x), method="lda")
    sides = [side["x1"] for _, side in frame.groupby("direction")]
    gap = abs(sides[0].mean() - sides[1].mean()) / np.mean([side.std() for side in sides])
    assert gap < 2


def test_shared_axes_are_those_of_a_pca_of_all_scaled_layers():
    layers = [draw(30, 8, seed=0), 50 * draw(30, 8, seed=1) - 900]
    frame = reduce(make_layers(*layers))
    scaled = [(x - x.mean(0)) / np.linalg.norm(x - x.mean(0)) * np.sqrt(30) for x in layers]
    model = PCA(2, svd_solver="full")
    expected = model.fit_transform(np.concatenate(scaled))
    np.testing.assert_allclose(np.abs(frame[["x1", "x2"]]), np.abs(expected), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(frame.attrs["explained"], model.explained_variance_ratio_)
    assert frame["layer"].tolist() == [4] * 30 + [5] * 30
    assert frame["id"].tolist() == [f"s{i}" for i in range(30)] * 2
    assert frame["direction"].tolist() == ["positive", "negative"] * 30


def test_layers_that_differ_by_size_and_place_only_give_the_same_picture():
    x = draw(30, 8)
    frame = reduce(make_layers(x, 1000 * x + 7))
    one, other = (own[["x1", "x2"]].to_numpy() for _, own in frame.groupby("layer"))
    np.testing.assert_allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_layers_together(method):
    acts = make_layers(draw(30, 6, effect=8.0), draw(30, 6, effect=8.0, seed=1))
    first, second = (reduce(acts, method=method, rng=3) for _ in range(2))
    assert first.equals(second)
    points = first.filter(regex=r"^x\d$").to_numpy()
    assert len(points) == 60
    assert (points[np.abs(points).argmax(0), np.arange(points.shape[1])] > 0).all()


def test_shared_lda_separates_the_sides_in_every_layer_along_one_axis():
    acts = make_layers(*(draw(200, 6, effect=60.0, seed=seed) for seed in range(3)))
    for _, own in reduce(acts, method="lda").groupby("layer"):
        sides = [side["x1"] for _, side in own.groupby("direction")]
        assert sides[0].min() > sides[1].max() or sides[1].min() > sides[0].max()


def test_shared_lda_does_not_separate_noise():
    """Each statement is there in five layers, which makes no five statements of it."""
    x = np.random.default_rng(0).normal(size=(60, 500))
    frame = reduce(make_layers(*(x + 0.01 * layer for layer in range(5))), method="lda")
    sides = [side["x1"] for _, side in frame.groupby("direction")]
    assert abs(sides[0].mean() - sides[1].mean()) / np.mean([side.std() for side in sides]) < 2


def test_one_function_under_both_names():
    assert exported is reduce


@pytest.mark.parametrize(
    ("acts", "options", "message"),
    [
        (make_acts(draw()).expand_dims("position"), {}, "takes .statement, node. or"),
        (make_acts(draw()).transpose(), {}, "takes .statement, node. or"),
        (make_layers(draw(), np.ones((40, 12))), {}, "leave that layer out"),
        (make_layers(draw(2), draw(2)), {}, "2 statements are too few for 2"),
        (make_acts(draw(2)), {}, "too few for 2"),
        (make_acts(draw(3)), {"n_components": 3}, "too few for 3"),
        (make_acts(np.ones((10, 4))), {}, "same activation"),
        (make_acts(draw())[::2], {"method": "lda"}, "at least two classes"),
    ],
)
def test_errors(acts, options, message):
    with pytest.raises(ValueError, match=message):
        reduce(acts, **options)


def test_unknown_method(monkeypatch):
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="unknown method 'mds'"):
        reduce(make_acts(draw()), method="mds")


def test_pairs_are_centred_on_their_own_means():
    acts = make_acts(draw(effect=8.0), personas=2)
    x = acts.to_numpy()
    by_hand = x - np.repeat((x[::2] + x[1::2]) / 2, 2, axis=0)
    frame = reduce(acts, center="pairs")
    np.testing.assert_allclose(np.abs(frame[["x1", "x2"]]), np.abs(PCA(2).fit_transform(by_hand)), atol=1e-8)
    np.testing.assert_allclose(frame["x1"].to_numpy()[::2], -frame["x1"].to_numpy()[1::2], atol=1e-8)
    # The order of the statements does not matter, and layers are centred each by itself.
    order = np.random.default_rng(0).permutation(len(x))
    mixed = reduce(acts.isel(statement=order), center="pairs")
    np.testing.assert_allclose(mixed[["x1", "x2"]], frame[["x1", "x2"]].iloc[order], atol=1e-8)
    layers = xr.concat([acts, 3 * acts.assign_coords(layer=4) + 1], dim="layer").transpose("layer", ...)
    both = reduce(layers, center="pairs")
    np.testing.assert_allclose(both["x1"].to_numpy()[:40], both["x1"].to_numpy()[40:], atol=1e-8)


def test_a_statement_without_a_partner_is_named():
    with pytest.raises(ValueError, match="'s38' is in no pair of two; center='pairs' needs partners"):
        reduce(make_acts(draw()).isel(statement=range(39)), center="pairs")
