import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.records import StageLog, is_moving, key_of, replace_text, write_frame

FRAME = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1,), (2,)),
        ((1,), ("1",)),
        ((1,), (True,)),
        ((1,), (None,)),
        ((1, 23), (12, 3)),
        (("a", "b"), ("b", "a")),
        (("a", "b"), ("ab",)),
        ((["a"], "b"), ("a", ["b"])),
        (([1, 2],), ([2, 1],)),
        (({"seed": 1},), ({"seed": 2},)),
        (({"seed": 1},), ({"rng": 1},)),
        ((np.array([1.0, 2.0]),), (np.array([1.0, 2.5]),)),
        ((0.1,), (0.1 + 1e-16 * 2,)),
        ((FRAME,), (FRAME[::-1].reset_index(drop=True),)),
        ((FRAME,), (FRAME.assign(a=[1, 3]),)),
        ((FRAME,), (FRAME.rename(columns={"a": "c"}),)),
        ((FRAME,), (FRAME[["b", "a"]],)),
        ((FRAME,), (FRAME.head(1),)),
        ((FRAME.head(0),), (FRAME[["a"]].head(0),)),
        ((FRAME, FRAME), (FRAME,)),
        ((FRAME, 1), (FRAME, 2)),
        ((), (None,)),
    ],
)
def test_key_changes_with_each_part(one, other):
    assert key_of(*one) != key_of(*other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([1, 2], (1, 2)),
        ([1, 2], np.array([1, 2])),
        (0.5, np.float64(0.5)),
        (3, np.array(3)),
        (Path("a/b"), "a/b"),
        (FRAME, FRAME.copy()),
    ],
    ids=str,
)
def test_key_of_equal_values_is_the_same(one, other):
    assert key_of(one) == key_of(other)


def read(folder):
    return json.loads((folder / "study.json").read_text())


def test_unchanged_stage_is_skipped(tmp_path):
    runs = []
    for key, exists in [("k1", False), ("k1", True), ("k1", False), ("k2", True), ("k2", True), ("k1", True)]:
        StageLog(tmp_path, {}).stage("scan", key, lambda: runs.append(1), exists=exists)
        assert read(tmp_path)["stages"]["scan"]["key"] == key
    assert len(runs) == 4  # first, results gone, other key, back to the first key


def test_stages_do_not_share_keys(tmp_path):
    log, runs = StageLog(tmp_path, {}), []
    log.stage("one", "k", lambda: runs.append("one"), exists=True)
    log.stage("two", "k", lambda: runs.append("two"), exists=True)
    log.stage("one", "k", lambda: runs.append("again"), exists=True)
    assert runs == ["one", "two"]


def test_failed_stage_runs_again(tmp_path):
    log = StageLog(tmp_path, {})
    log.stage("fine", "k", lambda: None, exists=True)
    with pytest.raises(ZeroDivisionError):
        log.stage("scan", "k", lambda: 1 / 0, exists=True)
    assert list(read(tmp_path)["stages"]) == ["fine"]
    runs = []
    StageLog(tmp_path, {}).stage("scan", "k", lambda: runs.append(1), exists=True)
    assert runs == [1]


def test_table_is_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return FRAME

    for key, n_calls in [("k1", 1), ("k1", 1), ("k2", 2)]:
        pd.testing.assert_frame_equal(StageLog(tmp_path, {}).table("nodes", key, compute), FRAME)
        assert len(calls) == n_calls
    (tmp_path / "nodes.parquet").unlink()
    StageLog(tmp_path, {}).table("nodes", "k2", compute)
    assert len(calls) == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"stages": {"scan"', b"\xff\xfe\x00broken", b"[]", b"null", b'{"stages": null}', b'{"stages": []}'],
)
def test_broken_record_is_started_anew(tmp_path, content):
    (tmp_path / "study.json").write_bytes(content)
    log, runs = StageLog(tmp_path, {"seed": 3}), []
    log.stage("scan", "k", lambda: runs.append(1), exists=True)
    assert runs == [1]
    assert read(tmp_path)["config"] == {"seed": 3}
    assert list(read(tmp_path)["stages"]) == ["scan"]


def test_record_holds_what_was_added(tmp_path):
    log = StageLog(tmp_path, {"seed": 3, "path": Path("some/where")})
    log.stage("scan", "k", lambda: None, exists=False)
    log.add(best_layer=np.int64(4), scores=np.array([1.5, 2.0]))
    log.finish()
    record = read(tmp_path)
    assert record["config"] == {"seed": 3, "path": "some/where"}
    assert (record["best_layer"], record["scores"]) == (4, [1.5, 2.0])
    assert record["seconds"] == {"scan": record["stages"]["scan"]["seconds"]}
    assert {"personascope", "torch", "transformers", "numpy"} <= record["versions"].keys()


def test_non_finite_numbers_become_null(tmp_path):
    log = StageLog(tmp_path, {"a": float("nan")})
    log.add(b=[np.inf, 1.0], c={"d": np.float32("-inf")}, e=np.array([np.nan, 2.0]))
    log.finish()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    record = json.loads((tmp_path / "study.json").read_text(), parse_constant=refuse)
    assert record["config"] == {"a": None}
    assert (record["b"], record["c"], record["e"]) == ([None, 1.0], {"d": None}, [None, 2.0])


def test_older_stages_are_kept_and_older_facts_are_not(tmp_path):
    first = StageLog(tmp_path, {"seed": 1})
    first.stage("scan", "k", lambda: None, exists=False)
    first.add(best_layer=4)
    first.finish()
    second = StageLog(tmp_path, {"seed": 2})
    second.stage("nodes", "k", lambda: None, exists=False)
    second.finish()
    assert read(tmp_path)["config"] == {"seed": 1}  # until there are new results
    second.add(best_layer=5)
    second.finish()
    record = read(tmp_path)
    assert list(record["stages"]) == ["scan", "nodes"]
    assert (record["config"], record["best_layer"]) == ({"seed": 2}, 5)


def finish(folder, key, *, stop_before_the_end=False, options=None):
    """A study of two tables in a folder; returns what its tables hold."""
    log = StageLog(folder, options or {})
    found = {name: log.table(name, key, lambda: FRAME.assign(key=key)) for name in ("layers", "scans/alpha")}
    log.leave_out("topics")
    if not stop_before_the_end:
        log.add(best_layer=key)
        log.finish()
    return {name: table["key"].iloc[0] for name, table in found.items()}


def tables(folder):
    return {name: pd.read_parquet(folder / f"{name}.parquet")["key"].iloc[0] for name in ("layers", "scans/alpha")}


def test_a_finished_study_stays_until_the_next_is_finished(tmp_path):
    finish(tmp_path, "a")
    write_frame(tmp_path / "topics.parquet", FRAME)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert finish(tmp_path, "b", stop_before_the_end=True) == {"layers": "b", "scans/alpha": "b"}
    assert {path: path.read_bytes() for path in before} == before
    assert finish(tmp_path, "a") == {"layers": "a", "scans/alpha": "a"}  # not those of b
    assert tables(tmp_path) == {"layers": "a", "scans/alpha": "a"}
    finish(tmp_path, "b")
    assert (tables(tmp_path), read(tmp_path)["best_layer"]) == ({"layers": "b", "scans/alpha": "b"}, "b")
    assert {path.name for path in tmp_path.rglob("*")} == {"study.json", "layers.parquet", "scans", "alpha.parquet"}


@pytest.mark.parametrize("move", [1, 2, 3])
def test_an_interrupted_move_is_completed(tmp_path, monkeypatch, move):
    finish(tmp_path, "a")
    original, calls = os.replace, []

    def interrupted(source, target):
        if ".next" in Path(source).parts and ".next" not in Path(target).parts:
            calls.append(1)
            if len(calls) == move:
                raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path, "b")
    assert is_moving(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("utils.records.write_frame", None)  # nothing is made again
        finish(tmp_path, "b")
    assert not is_moving(tmp_path)
    assert (tables(tmp_path), read(tmp_path)["best_layer"]) == ({"layers": "b", "scans/alpha": "b"}, "b")


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more", "other"])
def test_a_damaged_table_is_made_again(tmp_path, content):
    finish(tmp_path, "a")
    file = tmp_path / "scans" / "alpha.parquet"
    before = file.read_bytes()
    if content is None:
        file.unlink()
    elif content == "other":
        write_frame(file, FRAME)
    else:
        file.write_bytes(content)
    assert finish(tmp_path, "a") == {"layers": "a", "scans/alpha": "a"}
    assert file.read_bytes() == before


def test_interrupted_write_leaves_the_older_file(tmp_path, monkeypatch):
    text, table = tmp_path / "study.json", tmp_path / "new" / "nodes.parquet"
    replace_text(text, "old")
    write_frame(table, FRAME)

    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_text(text, "new")
    with pytest.raises(KeyboardInterrupt):
        write_frame(table, FRAME.head(1))
    monkeypatch.undo()
    assert text.read_text() == "old"
    pd.testing.assert_frame_equal(pd.read_parquet(table), FRAME)
    replace_text(text, "né")
    write_frame(table, FRAME.head(1))
    assert text.read_bytes() == "né".encode()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["new", "nodes.parquet", "study.json"]
