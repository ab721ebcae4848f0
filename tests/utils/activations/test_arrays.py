import numpy as np
import pytest
import xarray as xr

from utils.activations.arrays import store_arrays
from utils.activations.extraction import extract


def save(folder, **arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    names = ["openness_positive", "openness_negative", "tea-drinker_positive", "tea-drinker_negative"]
    # More than one batch of the store, which takes 64 rows at a time.
    return {name: rng.normal(size=(2, 5 * n + 60, 6)) for n, name in enumerate(names)}


@pytest.fixture
def folder(tmp_path, arrays):
    return save(tmp_path / "arrays", **arrays)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "acts.zarr"


def test_labels_and_values(folder, arrays, path):
    frame, write = store_arrays(folder)
    acts = write(path, False)
    assert acts.dims == ("layer", "statement", "node")
    assert acts["layer"].values.tolist() == [1, 2]
    assert len(frame) == acts.sizes["statement"] == sum(array.shape[1] for array in arrays.values())
    assert frame["id"].is_unique
    assert acts["statement"].values.tolist() == frame["id"].tolist()
    for name, array in arrays.items():
        persona, direction = name.split("_")
        own = acts.sel(persona=persona).sel(direction=direction)
        np.testing.assert_array_equal(own, array.astype("float32"))
        rows = frame[(frame["persona"] == persona) & (frame["direction"] == direction)]
        assert rows["topic"].unique().tolist() == ["personality" if persona == "openness" else "other"]
        assert rows["pair"].isna().all()
        assert set(rows["statement"]) == {""}


def test_one_layer_may_be_two_dimensional(tmp_path, path):
    values = np.arange(12, dtype="float16").reshape(4, 3)
    _, write = store_arrays(save(tmp_path / "arrays", a_positive=values, a_negative=-values))
    acts = write(path, False)
    assert acts.sizes == {"layer": 1, "statement": 8, "node": 3}
    assert acts.dtype == "float32"
    np.testing.assert_array_equal(acts.sel(layer=1, direction="positive"), values)
    np.testing.assert_array_equal(acts.sel(layer=1, direction="negative"), -values)


@pytest.mark.parametrize("sign", "_.-")
def test_signs_between_persona_and_direction(tmp_path, sign):
    folder = save(tmp_path / "arrays", **{f"a-b_c{sign}positive": np.zeros((2, 3)), "notes": np.zeros(2)})
    frame, _ = store_arrays(folder)
    assert frame["persona"].unique().tolist() == ["a-b_c"]
    assert frame["direction"].unique().tolist() == ["positive"]


def test_layers_are_named(folder, path):
    _, write = store_arrays(folder, layers=[7, 30])
    assert write(path, False)["layer"].values.tolist() == [7, 30]


def test_personas_are_chosen(folder, path):
    frame, write = store_arrays(folder, personas=["tea-drinker"])
    assert frame["persona"].unique().tolist() == ["tea-drinker"]
    assert set(write(path, False)["persona"].values) == {"tea-drinker"}


def test_a_second_write_only_reads(folder, path):
    first = store_arrays(folder)[1](path, False).compute()
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    again = store_arrays(folder)[1](path, False)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    xr.testing.assert_identical(again.compute(), first)


def swap(arrays):
    """The same numbers with the same sum, in other places."""
    return {**arrays, "openness_positive": arrays["openness_positive"][:, ::-1]}


def nudge(arrays):
    changed = arrays["openness_negative"].copy()
    changed[1, 3, 2] += 1e-3
    return {**arrays, "openness_negative": changed}


@pytest.mark.parametrize("change", [swap, nudge])
def test_changed_arrays_are_written_anew(folder, arrays, path, change):
    store_arrays(folder)[1](path, False)
    save(folder, **change(arrays))
    acts = store_arrays(folder)[1](path, False)
    for name, array in change(arrays).items():
        persona, direction = name.split("_")
        np.testing.assert_array_equal(acts.sel(persona=persona).sel(direction=direction), array.astype("float32"))


def test_other_layer_names_are_written_anew(folder, path):
    store_arrays(folder)[1](path, False)
    assert store_arrays(folder, layers=[3, 4])[1](path, False)["layer"].values.tolist() == [3, 4]


def test_store_of_a_model_is_not_replaced(folder, path, tiny):
    lm = tiny()
    before = extract(lm, ["Yes."], store=path, progress=False).compute()
    with pytest.raises(ValueError, match=r"acts\.zarr holds activations of a model; choose another folder"):
        store_arrays(folder)[1](path, False)
    xr.testing.assert_identical(extract(lm, ["Yes."], store=path, progress=False).compute(), before)


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere of activation arrays"):
        store_arrays(tmp_path / "nowhere")


def test_no_arrays(tmp_path):
    with pytest.raises(ValueError, match=r"holds no files called <persona>_positive\.npy and <persona>_negative\.npy"):
        store_arrays(save(tmp_path / "arrays", openness=np.zeros((2, 3))))


def test_unknown_persona(folder):
    with pytest.raises(ValueError, match="unknown persona 'opennes'; did you mean openness"):
        store_arrays(folder, personas=["opennes"])


def test_number_of_layers(folder):
    with pytest.raises(ValueError, match="3 layers are named and the arrays have 2"):
        store_arrays(folder, layers=[1, 2, 3])


@pytest.mark.parametrize("shape", [(2, 60, 7), (3, 60, 6), (60, 6)])
def test_shapes_that_do_not_go_together(folder, shape):
    save(folder, openness_negative=np.zeros(shape))
    with pytest.raises(ValueError, match=r"different layers or nodes: \[\(.*\)\] \(layers, nodes\)"):
        store_arrays(folder)


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((1, 2, 3, 4)), np.zeros((2, 3), int)])
def test_what_is_not_activations(tmp_path, array):
    with pytest.raises(ValueError, match=r"a_positive\.npy has shape \(.*\) and dtype .*; expected floats of shape"):
        store_arrays(save(tmp_path / "arrays", a_positive=array))


def test_pickles_are_not_opened(tmp_path):
    folder = save(tmp_path / "arrays", a_positive=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"a_positive\.npy is not a plain \.npy array"):
        store_arrays(folder)


def test_file_that_is_no_array(folder):
    (folder / "openness_positive.npy").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"openness_positive\.npy is not a plain \.npy array"):
        store_arrays(folder)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("value", [np.nan, -np.inf, 1e300])
def test_non_finite_value_is_named(folder, arrays, value):
    """1e300 is finite on disk and is not in float32."""
    arrays["tea-drinker_negative"][1, 3, 2] = value
    save(folder, **arrays)
    with pytest.raises(ValueError, match="statement 'tea-drinker-negative-00003' at layer 30 is not finite"):
        store_arrays(folder, layers=[7, 30])
