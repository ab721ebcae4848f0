import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
import zarr
from tiny import count_forwards

from utils.activations.extraction import extract
from utils.activations.integrity import LABELS
from utils.activations.layout import create_store
from utils.activations.store import VERSION, ActivationStore, holds, open_existing, open_store

TESTS = Path(__file__).resolve().parents[2]
N, SIZE = 12, 3
OPTIONS = {"batch_size": SIZE, "progress": False}


def make_frame():
    """Two personas that take turns; lengths fall, so that the order on disk is not the order asked for."""
    return pd.DataFrame(
        {
            "id": [f"s{i:02d}" for i in range(N)],
            "persona": ["liberal", "conservative"] * (N // 2),
            "topic": "politics",
            "direction": ["positive", "positive", "negative", "negative"] * (N // 4),
            "statement": [f"I like {'cats and ' * (N - i)}dogs." for i in range(N)],
            "pair": pd.array([f"pair-{i // 4}" for i in range(N - 1)] + [None], dtype="string"),
        }
    )


@pytest.fixture
def frame():
    return make_frame()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "acts.zarr"


def contents(folder):
    """Every file below a folder and what is in it."""
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextlib.contextmanager
def fail_at(monkeypatch, owner, name, call, error):
    """Make a method raise at its n-th call, before it does anything."""
    original, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        yield


def test_stored_values_are_those_in_memory(tiny, frame, path):
    lm = tiny()
    stored, direct = (extract(lm, frame, position="mean", store=store, **OPTIONS) for store in (path, None))
    xr.testing.assert_identical(stored.compute(), direct)
    xr.testing.assert_identical(open_store(path).compute(), direct)
    assert stored["pair"].values.tolist()[-1] == ""


def test_selection_by_layer_and_persona(tiny, frame, path):
    acts = extract(tiny(), frame, store=path, **OPTIONS)
    chosen = acts.sel(layer=2).sel(persona="conservative")
    assert chosen["statement"].values.tolist() == [f"s{i:02d}" for i in range(1, N, 2)]
    np.testing.assert_array_equal(chosen, acts.values[2, 1::2])
    both = acts.sel(layer=[1, 3], persona="liberal").sel(direction="negative")
    np.testing.assert_array_equal(both, acts.values[[1, 3]][:, 2::4])
    np.testing.assert_array_equal(acts.sel(pair="pair-1"), acts.values[:, 4:8])


def test_xarray_opens_it_without_the_project(tiny, frame, path):
    acts = extract(tiny(), frame, store=path, **OPTIONS)
    data = xr.open_zarr(path)
    assert data["activations"].dims == ("layer", "statement", "node")
    assert data.attrs["config"] == acts.attrs
    assert data["done"].values.tolist() == [True] * (N // SIZE)
    for row in range(N):
        name = data["statement"].values[row]
        expected = acts.sel(statement=name)
        np.testing.assert_array_equal(data["activations"][:, row], expected)
        for label in ("persona", "topic", "direction", "pair", "text"):
            assert data[label].values[row] == expected[label].item()


def test_reading_is_lazy(tiny, frame, path):
    """With every other chunk broken, one layer of one persona is still read, and the rest is not."""
    expected = extract(tiny(), frame, store=path, **OPTIONS).compute()
    chunks = sorted((path / "activations").glob("[0-9]*"))
    assert len(chunks) == 4 * N // SIZE
    keep = {f"2.{batch}.0" for batch in range(N // SIZE // 2)}  # the persona named first lies first
    for chunk in chunks:
        if chunk.name not in keep:
            chunk.write_bytes(b"broken")
    acts = open_store(path)
    np.testing.assert_array_equal(acts.sel(layer=2, persona="liberal"), expected.sel(layer=2, persona="liberal"))
    for broken in (acts.sel(layer=1, persona="liberal"), acts.sel(layer=2, persona="conservative")):
        with pytest.raises(RuntimeError, match="decompression"):
            broken.compute()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_resumes_to_the_same_bits(tiny, frame, path, monkeypatch, error):
    lm = tiny()
    expected = extract(lm, frame, store=path.with_name("whole.zarr"), **OPTIONS).compute()
    with fail_at(monkeypatch, lm.decoder, "forward", 3, error), pytest.raises(error):
        extract(lm, frame, store=path, **OPTIONS)
    with pytest.raises(ValueError, match=r"not finished \(50%\); run the extraction again"):
        open_store(path)
    with count_forwards(lm) as sizes:
        resumed = extract(lm, frame, store=path, **OPTIONS)
    assert sizes == [SIZE, SIZE]
    xr.testing.assert_identical(resumed.compute(), expected)


def test_resumed_run_keeps_the_batches_of_the_first(tiny, frame, path, monkeypatch):
    """Another batch size at the second call would change the last bits."""
    lm = tiny()
    expected = extract(lm, frame, store=path.with_name("whole.zarr"), **OPTIONS).compute()
    with fail_at(monkeypatch, lm.decoder, "forward", 3, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        extract(lm, frame, store=path, **OPTIONS)
    with count_forwards(lm) as sizes:
        resumed = extract(lm, frame, store=path, batch_size=5, progress=False)
    assert sizes == [SIZE, SIZE]
    xr.testing.assert_identical(resumed.compute(), expected)


def test_batch_that_was_written_but_not_marked_is_kept(tiny, frame, path, monkeypatch):
    lm = tiny()
    expected = extract(lm, frame, store=path.with_name("whole.zarr"), **OPTIONS).compute()
    with fail_at(monkeypatch, ActivationStore, "_mark", 2, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        extract(lm, frame, store=path, **OPTIONS)
    with count_forwards(lm) as sizes:
        resumed = extract(lm, frame, store=path, **OPTIONS)
    assert sizes == [SIZE, SIZE]
    xr.testing.assert_identical(resumed.compute(), expected)


def test_killed_run_resumes_to_the_same_bits(tiny, frame, path):
    """The process is killed for good, in the third batch, when two of its four layers are on disk."""
    code = f"""if True:
        import os, signal
        from test_store import OPTIONS, make_frame
        from tiny import make_lm
        from utils.activations import extract
        from utils.activations.store import NAME, ActivationStore
        write = ActivationStore.write
        def torn(self, rows, values):
            if rows[0] == 2 * {SIZE}:
                self.group[NAME][:2, int(rows[0]) : int(rows[-1]) + 1] = values[:2]
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, rows, values)
        ActivationStore.write = torn
        extract(make_lm(), make_frame(), store={str(path)!r}, **OPTIONS)
    """
    here = os.pathsep.join(map(str, [Path(__file__).parent, TESTS, TESTS.parent]))
    killed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert {chunk.name for chunk in (path / "activations").glob("*.2.0")} == {"0.2.0", "1.2.0"}
    lm = tiny()
    with count_forwards(lm) as sizes:
        resumed = extract(lm, frame, store=path, **OPTIONS)
    assert sizes == [SIZE, SIZE]
    xr.testing.assert_identical(resumed.compute(), extract(lm, frame, **OPTIONS))


def test_finished_store_is_only_read(tiny, frame, path):
    lm = tiny()
    extract(lm, frame, store=path, **OPTIONS)
    before = contents(path)
    with count_forwards(lm) as sizes:
        extract(lm, frame.assign(topic=frame["topic"]), store=path, **OPTIONS)
    assert sizes == []
    assert contents(path) == before


@pytest.mark.parametrize("missing", [None, float("nan")])
@pytest.mark.parametrize("column", ["persona", "topic", "direction", "pair"])
def test_missing_labels_do_not_count_as_changed(tiny, frame, path, monkeypatch, column, missing):
    lm = tiny()
    frame[column] = frame[column].astype(object).where(np.arange(N) % 2 == 0, missing)
    stored = extract(lm, frame, store=path, **OPTIONS)
    assert stored[column].values.tolist()[1] == ""
    monkeypatch.setattr("utils.activations.plan.create_store", None)  # it would be laid out anew
    again = extract(lm, frame, store=path, **OPTIONS)
    xr.testing.assert_identical(again, extract(lm, frame, **OPTIONS))


def renamed(frame):
    return frame.assign(persona=frame["persona"].str.upper(), topic="other", direction="positive")


def other_texts(frame):
    return frame.assign(statement=frame["statement"].where(frame["id"] != "s05", "Something else."))


def three_other_texts(frame):
    return frame.assign(statement=frame["statement"].mask(frame["id"].isin(["s00", "s05", "s11"]), "It is so."))


def more(frame):
    new = frame.head(2).assign(id=["new-0", "new-1"], statement=["Brand new.", "And another one that is new."])
    return pd.concat([new, frame], ignore_index=True)


@pytest.mark.parametrize("batch_size", [5, 12])
@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (renamed, 0),
        (lambda frame: frame[::-1], 0),
        (lambda frame: frame.head(7), 0),
        (other_texts, 1),
        (three_other_texts, 3),
        (more, 2),
    ],
    ids=["labels", "order", "fewer", "one text", "three texts", "more"],
)
def test_only_what_changed_is_computed(tiny, frame, path, change, computed, batch_size):
    lm = tiny()
    extract(lm, frame, store=path, batch_size=batch_size, progress=False)
    changed = change(frame)
    with count_forwards(lm) as sizes:
        acts = extract(lm, changed, store=path, batch_size=batch_size, progress=False)
    assert sum(sizes) == computed
    expected = extract(lm, changed, **OPTIONS)
    for name in ("statement", "persona", "topic", "direction", "pair", "text"):
        assert acts[name].values.tolist() == expected[name].values.tolist()
    np.testing.assert_allclose(acts, expected, rtol=1e-5, atol=1e-5)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_change_to_an_unfinished_store_keeps_what_is_there(tiny, frame, path, monkeypatch):
    lm = tiny()
    _ = lm.max_tokens  # asked once a model, by a small pass of its own
    with fail_at(monkeypatch, lm.decoder, "forward", 3, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        extract(lm, frame, store=path, **OPTIONS)
    with count_forwards(lm) as sizes:
        acts = extract(lm, more(frame), store=path, **OPTIONS)
    assert sum(sizes) == N // 2 + 2
    np.testing.assert_allclose(acts, extract(lm, more(frame), **OPTIONS), rtol=1e-5, atol=1e-5)


def test_statements_are_told_apart_by_their_span(tiny, frame, path):
    """The same tokens, cut differently into template and statement, are another prompt where it matters."""
    lm = tiny()
    twice = frame.head(2).assign(statement="I like cats.")
    with count_forwards(lm) as sizes:
        acts = extract(lm, twice, store=path, **OPTIONS)
    assert sum(sizes) == 2
    # Two rows of one batch: threads may sum them in another order.
    np.testing.assert_allclose(acts[:, 0], acts[:, 1], rtol=1e-5, atol=1e-5)
    again = extract(lm, frame.head(3).assign(statement="I like cats."), store=path, **OPTIONS)
    np.testing.assert_array_equal(again[:, 2], again[:, 0])


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_interrupted_rebuild_loses_nothing(tiny, frame, path, monkeypatch, rename):
    """Laying out anew moves folders three times; an interruption before each leaves what was computed."""
    lm = tiny()
    extract(lm, frame, store=path, **OPTIONS)
    with fail_at(monkeypatch, Path, "rename", rename, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        extract(lm, other_texts(frame), store=path, **OPTIONS)
    with count_forwards(lm) as sizes:
        acts = extract(lm, other_texts(frame), store=path, **OPTIONS)
    assert sum(sizes) == 1
    np.testing.assert_allclose(acts, extract(lm, other_texts(frame), **OPTIONS), rtol=1e-5, atol=1e-5)
    extract(lm, more(frame), store=path, **OPTIONS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_leftover_of_a_rebuild_is_no_hindrance(tiny, frame, path):
    lm = tiny()
    extract(lm, frame, store=path, **OPTIONS)
    (path.with_name(f".{path.name}.old") / "junk").mkdir(parents=True)
    (path.with_name(f".{path.name}.rebuilt") / "junk").mkdir(parents=True)
    extract(lm, other_texts(frame), store=path, **OPTIONS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ({"seed": 1}, {}, "fingerprint"),
        ({"kind": "gpt-2"}, {}, "model, fingerprint"),
        ({"template": "with-bos"}, {}, "template"),
        ({}, {"position": "mean"}, "position"),
        ({}, {"role": "user"}, "template, role"),
        ({}, {"layers": [1, 2]}, "layers"),
        ({"dtype": torch.bfloat16}, {}, "fingerprint, model_dtype"),
    ],
    ids=["weights", "architecture", "template", "position", "role", "layers", "dtype"],
)
def test_other_configuration_is_refused(tiny, frame, path, model, options, named):
    extract(tiny(), frame, store=path, **OPTIONS)
    before = contents(path)
    model = dict(model)
    dtype = model.pop("dtype", torch.float32)
    other = tiny(**model)
    other.model.to(dtype)
    with pytest.raises(ValueError, match=rf"acts.zarr holds activations made with another {named}; choose another"):
        extract(other, frame, store=path, **options, **OPTIONS)
    assert contents(path) == before


def test_newer_library_versions_do_not_refuse_a_store(tiny, frame, path, monkeypatch):
    lm = tiny()
    extract(lm, frame, store=path, **OPTIONS)
    monkeypatch.setattr(torch, "__version__", "99.0")
    with count_forwards(lm) as sizes:
        acts = extract(lm, frame, store=path, **OPTIONS)
    assert sizes == []
    assert acts.attrs["versions"]["torch"] != "99.0"


def make_folder(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def make_zarr(path):
    zarr.open_group(path, mode="w").create_array("activations", shape=(2,), dtype="float32")


def make_zarr_of_version_1(path):
    make_zarr(path)
    zarr.open_group(path, mode="r+").attrs["version"] = VERSION


@pytest.mark.parametrize(
    "make", [make_folder, make_zarr, make_zarr_of_version_1, lambda path: path.write_text("mine")],
    ids=["folder", "zarr", "zarr with a version", "file"],
)  # fmt: skip
def test_what_is_not_a_store_is_refused_and_kept(tiny, frame, path, make):
    make(path)
    before = contents(path) or path.read_text()
    with pytest.raises(
        ValueError, match=r"acts\.zarr is .*(not an activation store|of version None).*(remove it|choose another)"
    ):
        extract(tiny(), frame, store=path, **OPTIONS)
    with pytest.raises(ValueError, match=r"acts\.zarr is "):
        open_store(path)
    assert (contents(path) or path.read_text()) == before


def test_store_of_another_version_is_refused(tiny, frame, path):
    extract(tiny(), frame, store=path, **OPTIONS)
    zarr.open_group(path, mode="r+").attrs["version"] = VERSION + 1
    with pytest.raises(ValueError, match=f"is a store of version {VERSION + 1}, this program writes {VERSION}"):
        open_store(path)


def test_no_store(path):
    assert open_existing(path) is None
    with pytest.raises(FileNotFoundError, match=r"no activation store at .*acts\.zarr"):
        open_store(path)


def test_rows_that_are_missing(path):
    rows = make_frame().assign(key=[f"k{i}" for i in range(N)], order=range(N))
    store = create_store(path, layers=[4, 9], d_node=2, rows=rows, batch_rows=5, dtype="float32", config={})
    assert not store.finished
    assert [batch.tolist() for batch in store.missing()] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    values = np.arange(2 * N * 2, dtype="float32").reshape(2, N, 2)
    store.write(np.array([5, 6]), values[:, 5:7])
    store.write(np.array([10, 11]), values[:, 10:])
    store.group["activations"][0, :5] = values[0, :5]  # torn: of two layers, one is there
    for again in (store, open_existing(path)):
        assert [batch.tolist() for batch in again.missing()] == [[0, 1, 2, 3, 4], [7, 8, 9]]
        assert again.finished_keys() == {"k5": 5, "k6": 6, "k10": 10, "k11": 11}
        assert again.done.tolist() == [False, False, True]
    store.write(np.arange(7, 10), values[:, 7:10])
    store.write(np.arange(5), values[:, :5])
    assert open_existing(path).finished
    np.testing.assert_array_equal(store.read_rows(np.array([11, 0, 6])), values[:, [11, 0, 6]])
    np.testing.assert_array_equal(open_store(path), values)


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)


def zero_row(path):
    zarr.open_group(path, mode="r+")["activations"][1, 4] = 0


@pytest.mark.parametrize(
    ("damage", "computed"),
    [
        (lambda path: (path / "activations" / "2.1.0").unlink(), SIZE),
        (lambda path: (path / "activations" / "2.3.0").write_bytes(b""), SIZE),
        (lambda path: (path / "activations" / "0.0.0").write_bytes(b"x" * 30), SIZE),
        (lambda path: flip_bit(path / "activations" / "1.3.0"), SIZE),
        (lambda path: shutil.copy(path / "activations" / "1.3.0", path / "activations" / "2.0.0"), SIZE),
        (zero_row, SIZE),
        (lambda path: (path / "done" / "3").unlink(), 0),
        (lambda path: (path / "done" / "0").write_bytes(b"x"), 0),
        *((lambda path, name=name: (path / name / "0").unlink(), 0) for name in LABELS),
        *((lambda path, name=name: (path / name / "0").write_bytes(b"x"), 0) for name in LABELS),
    ],
)
def test_damaged_stores_are_seen_and_repaired(tiny, frame, path, damage, computed):
    lm = tiny()
    expected = extract(lm, frame, store=path, **OPTIONS).compute()
    assert holds(path, frame)
    damage(path)
    assert not holds(path, frame)
    with count_forwards(lm) as sizes:
        xr.testing.assert_identical(extract(lm, frame, store=path, **OPTIONS).compute(), expected)
    assert sum(sizes) == computed
    assert holds(path, frame)


@pytest.mark.parametrize("damage", ["labels", "chunk", "flag"])
def test_damaged_store_is_not_read(tiny, frame, path, damage):
    extract(tiny(), frame, store=path, **OPTIONS)
    (path / {"labels": "order/0", "chunk": "activations/2.1.0", "flag": "done/3"}[damage]).unlink()
    with pytest.raises(ValueError, match=r"acts\.zarr is (damaged|not finished).*run the extraction again"):
        open_store(path)


def test_other_statements_are_not_held(tiny, frame, path):
    extract(tiny(), frame, store=path, **OPTIONS)
    for other in (other_texts(frame), renamed(frame), frame[::-1], frame.head(7), more(frame)):
        assert not holds(path, other)
    assert not holds(path, frame, {"position": "mean"})
    assert not holds(path.with_name("none.zarr"), frame)
