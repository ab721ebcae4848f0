import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.decomposition import PCA

from utils.layers.maps import draw_statements, map_statements


def make_acts(n_pairs=10, n_nodes=6, layers=(1, 2, 3), *, paired=True, rng=0):
    """Two personas; layers that are rotations of one another, so that their principal components are the same."""
    generator = np.random.default_rng(rng)
    n = 4 * n_pairs
    values = generator.normal(size=(n, n_nodes)) * np.arange(n_nodes, 0, -1)
    turned = [values @ np.linalg.qr(generator.normal(size=(n_nodes, n_nodes)))[0] for _ in layers]
    pairs = np.repeat(np.arange(2 * n_pairs), 2).astype(str).astype(object)
    coords = {
        "layer": list(layers),
        "statement": [f"s{i:03d}" for i in range(n)],
        "persona": ("statement", np.repeat(["a", "b"], 2 * n_pairs)),
        "topic": ("statement", np.full(n, "manners")),
        "direction": ("statement", np.tile(["positive", "negative"], 2 * n_pairs)),
        "pair": ("statement", pairs if paired else np.full(n, None)),
    }
    return xr.DataArray(np.stack(turned), dims=("layer", "statement", "node"), coords=coords)


def points_of(maps, **wanted):
    for name, value in wanted.items():
        maps = maps[maps[name] == value]
    return maps[["x1", "x2"]].to_numpy()


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_points_are_the_principal_components_of_their_layer(layer):
    acts = make_acts()
    found = points_of(map_statements(acts), center="none", layer=layer)
    expected = PCA(2, svd_solver="full").fit_transform(acts.sel(layer=layer).to_numpy())
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)


def test_axes_do_not_turn_over_from_one_layer_to_the_next():
    maps = map_statements(make_acts())
    first = points_of(maps, center="none", layer=1)
    for layer in (2, 3):
        np.testing.assert_allclose(points_of(maps, center="none", layer=layer), first, atol=1e-9)


def test_partners_mirror_each_other_where_pairs_are_centred():
    points = points_of(map_statements(make_acts()), center="pairs", layer=2)
    np.testing.assert_allclose(points[::2], -points[1::2], atol=1e-9)


@pytest.mark.parametrize("missing", [None, ""])
def test_without_pairs_nothing_is_centred(missing):
    acts = make_acts().assign_coords(pair=("statement", np.full(40, missing, object)))
    assert {*map_statements(acts)["center"]} == {"none"}


def test_pairs_of_two_personas_may_have_the_same_names():
    acts = make_acts()
    names = acts["pair"].to_numpy().copy()
    names[20:] = names[:20]
    assert {*map_statements(acts.assign_coords(pair=("statement", names)))["center"]} == {"none", "pairs"}


def test_a_layer_where_all_statements_are_the_same_is_left_out():
    acts = make_acts()
    acts[0] = 1.0
    assert {*map_statements(acts)["layer"]} == {2, 3}
    acts[:] = 1.0
    assert map_statements(acts).empty


def test_umap_is_fitted_where_it_was_asked_for_and_follows_the_seed():
    acts = make_acts(n_pairs=25)
    maps = map_statements(acts, umap_layers=(2,), rng=3)
    own = maps[maps["method"] == "umap"]
    assert {*own["layer"]} == {2}
    pd.testing.assert_frame_equal(maps, map_statements(acts, umap_layers=(2,), rng=3))
    assert {*map_statements(make_acts(n_pairs=24), umap_layers=(2,))["method"]} == {"pca"}


@pytest.mark.parametrize("paired", [True, False])
def test_of_many_statements_whole_pairs_are_drawn_evenly(paired):
    acts = make_acts(paired=paired)
    places = draw_statements(acts, 12, rng=1)
    held = acts.isel(statement=places)
    assert len(places) == 12
    assert np.all(np.diff(places) > 0)
    assert pd.Series(held["persona"].to_numpy()).value_counts().to_dict() == {"a": 6, "b": 6}
    if paired:
        assert set(pd.Series(held["pair"].to_numpy()).value_counts()) == {2}
    assert set(draw_statements(acts, 12, rng=2)) != set(places)
    assert len(draw_statements(acts, 999)) == 40
