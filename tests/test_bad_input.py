"""Bad input to every command and to public functions: one sentence, a status that says so, no traceback, nothing touched.

One row a case: words of a command, with ``{places}`` of the site below. Rows of a command that refuse the same thing stand
together.
"""

import functools
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sided import make_vectors
from small import digest_folder, write_arrays
from tiny import make_lm

import utils.models.load
from deepscan import (
    Background,
    ScanRuns,
    calibrated_scan,
    detect,
    node_test,
    run_scans,
    scan,
    separation_test,
)
from deepscan.runs import read_runs
from utils.activations.extraction import extract
from utils.activations.store import open_store
from utils.cli.main import main
from utils.experiments.check import check_run
from utils.layers.separation import best_layer, reduce
from utils.statements.contrasts import find_contrasts
from utils.statements.load import load_statements
from utils.statements.questions import load_identities, load_questions
from utils.statements.splits import draw_parts
from utils.study.results import open_study
from utils.subnetworks.calibration import Calibration
from utils.subnetworks.masks import PersonaMask
from utils.vectors.fit import PersonaVectors, persona_vectors

FEW = "--runs 2 --permutations 19 --flips 19 --clean 2 --anomalous 2 --power-draws 0 --jobs 1"
# Of a command up to what is bad in a row.
ARRAYS = f"study --out {{out}} --activations {{arrays}} {FEW}"
MODEL = f"study --out {{out}} --model {{model}} --statements {{statements}} --device cpu {FEW}"
CAUSAL = "causal {study} --out {out} --random 3 --matched 0 --cost 0"
VECTORS = "vectors {study} --out {out}"
PATCH = "patch --model {model} --device cpu --questions {questions} --out {out}"
GENERATE = "generate Hello --model {model} --device cpu --vectors {vectors}"
RUN = "mask run warm --model {model} --device cpu --statements {statements} --pairs 20 --out {out}"
CALIBRATE = "mask calibrate warm {out} --model {model} --device cpu --statements {statements} --pairs 20"
BUILD = "mask build {calibration} {out} --model {model} --device cpu"
EVALUATE = "mask evaluate warm {mask} --model {model} --device cpu --statements {statements} --pairs 20 --out {out}"
ANSWER = "mask generate Hello {mask} --model {model} --device cpu"

COMMANDS = {
    ARRAYS: """
        --personas zzz|--personas alhpa|--layers x|--layers 1-|--layers -1|--layers 1.5|--layers 1|--layers 1,2,3,4
        --scan-layers x|--scan-layers 9|--scan-layers -1|--scan-layers 1-x|--position first
        --position last,last|--position mean,
        --batch-size 0|--batch-size -1|--batch-size many|--batch-size 1.5|--seed -1|--seed x|--runs 0|--runs x
        --permutations 18|--permutations x|--flips 18|--clean 0|--clean 999|--anomalous 0|--anomalous 999
        --score entropy
        --tail up|--center left|--protocol own|--power-draws -1|--contrast none|--scan both|--probe-flips -1
        --probe-flips 5
        --stability -1|--threshold -1|--threshold 0|--threshold 2|--threshold nan|--threshold x|--jobs -1
        --role nobody
        --activations {nowhere}|--activations {file}|--activations {empty}|--activations {ragged}|--activations {nan}
        --activations {pickled}|--activations {one_sided}|--activations {integers}|--activations {flat}
        --activations {few}
        --out {file}|--out {file}/below|--out {causal_folder}
    """,
    MODEL: """
        --model {nowhere}|--model {empty}|--model {file}|--model {broken_model}|--model {cut_model}
        --device nowhere|--device cuda:99
        --dtype int8|--dtype float8|--layers 99|--scan-layers 99|--layers 1,2 --scan-layers 3
        --personas cold|--topics nowhere
        --statements {nowhere}|--statements {empty}|--statements {file}|--statements {binary}|--statements {header}
        --statements {no_direction}|--statements {one_side}|--statements {bad_side}|--statements {broken_json}
        --statements {broken_parquet}|--statements {broken_gzip}|--statements {too_few}|--statements {too_long}
        --contrast one-vs-rest|--per-side 0|--per-side 1|--min-confidence 2|--min-confidence x|--role nobody
        --out {file}
    """,
    "compare": """
        {study}|{study} {nowhere}|{nowhere} {nowhere}|{study} {empty}|{study} {study}|{study} {broken_study}
        {study} {file}
    """,
    "list": "{nowhere}|{file}",
    "open": "{nowhere}|{empty}|{file}",
    "plot {study}": "nodemap|tests --width 0|tests --width nan|tests --format gif|tests --out {file}|tests,tests2",
    "export": "{nowhere}|{empty}|{broken_study}|{study} --out {file}",
    "scan": """
        {nowhere} {nowhere}|{file} {file}|{rows} {wider}|{rows} {fewer} --pairs|{rows} {empty}|{layered} {layered}
        {layered} {layered} --layer 3|{rows} {rows} --clean 99|{rows} {rows} --threshold 0|{rows} {rows} --threshold nan
        {rows} {rows} --permutations 3|{rows} {rows} --out {file}|{rows} {not_finite}|{rows} {rows} --score loud
    """,
    "info": "--model {nowhere}|--model {empty}|--model {cut_model}|--model {model} --device nowhere|--model {broken_model}",
    "check": "{nowhere}|{file}|{empty}|",
    CAUSAL: """
        --persona cold|--layer 99|--layer -1|--check push|--check steer/loudness
        --check steer/likelihood/loud|--pairs 4|--pairs 999
        --random 0|--matched -1|--size 0|--size 999|--scope some|--strength x|--strengths x|--sizes x
        --sizes 0|--layer-step -1
        --curve 0|--permutations 18|--cost -1|--out {file}|--out {study}|--model {nowhere}|--device nowhere
        --dtype float16
    """,
    "causal": "{nowhere}|{empty}|{file}|{broken_study}",
    VECTORS: """
        --personas cold|--method own|--layers x|--layers 99|--layers -1|--strengths x|--strengths ,|--pairs 4|--random -1
        --bound x|--bound nan|--bound 0|--out {file}|--out {study}|--model {nowhere}|--measure loudness|--dtype float16
    """,
    "vectors": "{nowhere}|{empty}|{broken_study}",
    PATCH: """
        --segments nowhere|--segments ,|--source person|--n 0|--ask 0|--layer-step 0|--max-tokens -1|--per-group -1
        --questions {nowhere}|--questions {file}|--questions {header}|--questions {bad_letter}|--identities {nowhere}
        --identities {file}|--out {file}|--model {nowhere}|--device nowhere|--n x|--out {study}
    """,
    GENERATE: """
        |--steer warm|--steer warm=x|--steer cool=1|--cap warm=3|--cap warm=x:1|--ablate cool
        --steer warm=1 --sweep 0:1
        --steer warm=1 --sweep 0:1:1|--steer warm=1 --steer terse=1 --sweep 0:1:3|--steer warm=1 --layer 99
        --steer warm=1 --tokens some
        --steer warm=1 --max-tokens 0|--steer warm=1 --temperature -1|--steer warm=1 --vectors {nowhere}
        --steer warm=1 --vectors {file}|--steer warm=1 --vectors {mask}|--steer warm=1 --vectors {broken_gguf}
        --steer warm=1 --model {nowhere}
    """,
    RUN: """
        --unrelated cold|--unrelated warm|--score loud|--sparsities x|--sparsities 1.5|--sparsities -0.1
        --sparsities ,|--shuffles -1
        --pairs 0|--pairs 999|--questions 0|--out {file}|--out {study}|--statements {nowhere}
        --model {nowhere}|--seed x
    """,
    "power {study}": """
        --layer 99|--layer x|--tests t|--tests ,|--sizes 0|--sizes x|--sizes 9999|--plant 2|--plant 2,x|--plant 99999,1
        --draws 0|--permutations 1|--out {file}
    """,
    "power": "{nowhere}|{empty}|{broken_study}",
    "audit --out {out}": """
        |{nowhere}|{empty}|{file}|{binary}|{broken_parquet}|{broken_study}|{arrays}|{runs} {runs}|{runs} {study} {study}
        {runs} --n-nodes 0|{runs} --n-nodes 3|{runs} --n-nodes x|{study} --n-nodes 3|{runs} --seed -1
        {runs} --thresholds 2|{runs} --thresholds -0.1|{runs} --thresholds x|{runs} --thresholds any,0|{runs} --thresholds ,
        {runs} --sizes 25|{runs} --sizes 0,1|{runs} --sizes 1,x|{runs} --sizes 1,1
        {runs} --clean x|{runs} --clean {nowhere}={runs}|{runs} --clean {runs}={nowhere}|{runs} --clean {runs}={runs}
        {runs} --clean {runs}={study}|{runs} --study {file}|--study {nowhere}|{runs} --out {file}|{runs} --out {study}
        {runs} --out {causal_folder}
    """,
    CALIBRATE: "--other cold|--other warm|--pairs 0|--pairs 999|--statements {nowhere}|--model {nowhere}|--role nobody",
    "mask calibrate warm": "{study}|{file}/below --statements {statements}",
    BUILD: """
        --sparsity 1|--sparsity -1|--sparsity nan|--score loud|--side left|--group all|--scope some|--layers 99|--layers x|--tau 0
    """,
    "mask build": "{nowhere} {out}|{file} {out}|{mask} {out} --model {model}|{calibration} {study}|{calibration} {file}/below",
    EVALUATE: "--questions 0|--pairs 0|--pairs 999|--out {file}|--statements {nowhere}|--model {nowhere}",
    "mask evaluate warm --statements {statements}": "{nowhere}|{file}|{calibration}",
    ANSWER: "--max-tokens 0|--model {nowhere}|--gamma x",
    "mask generate Hello --model {model}": "{nowhere}|{file}|{calibration}",
    "": "studdy|study --nothing|mask|mask nothing",
}
ROWS = [
    f"{command} {row}"
    for command, rows in COMMANDS.items()
    for line in rows.strip().splitlines()
    for row in line.strip().split("|")
]


@pytest.fixture(scope="module")
def site(wired, tmp_path_factory):
    """Everything that rows name: what is whole, and what is broken."""
    lm, study = wired
    folder = tmp_path_factory.mktemp("site")
    held = {"study": study.folder, "model": study.config["model"], "statements": study.config["statements"]}
    for name, text in {
        "file": "neither this nor that",
        "header": "statement,direction,persona\n",
        "no_direction": "statement,persona\nI like tea.,tea\n",
        "one_side": "statement,direction,persona\n" + "I like tea.,positive,tea\n" * 40,
        "bad_side": "statement,direction,persona\nI like tea.,maybe,tea\n",
        "too_few": "statement,direction,persona\n" + "Tea.,positive,tea\nNo.,negative,tea\n" * 4,
        "too_long": "statement,direction,persona\n"
        + "".join(f"{'word1 ' * 300}{i},{side},tea\n" for i in range(40) for side in ("positive", "negative")),
        "broken_json": '[{"statement": ',
        "questions": "question,A,B,C,D,answer\n" + "".join(f"{i} + 1?,1,2,3,4,A\n" for i in range(4)),
        "runs": "1.5 0.5 0.25 2 3 0.01 4,0,2 7,1\n2.5 0.5 0.25 2 3 0.01 4,0,1 7,1\n",
        "bad_letter": "question,A,B,C,D,answer\n1 + 1?,1,2,3,4,E\n",
    }.items():
        ending = {"file": "", "broken_json": ".json"}.get(name, ".csv")
        held[name] = folder / f"{name}{ending}"
        held[name].write_text(text)
    for name, ending in {
        "binary": ".csv",
        "broken_parquet": ".parquet",
        "broken_gzip": ".csv.gz",
        "broken_gguf": ".gguf",
    }.items():
        held[name] = folder / f"{name}{ending}"
        held[name].write_bytes(b"\x00\xff\xfe\x80 nothing" * 9)
    held |= {"nowhere": folder / "nowhere", "empty": folder / "empty"}
    held["empty"].mkdir()
    held |= _write_models(folder, Path(held["model"])) | _write_all_arrays(folder)
    for name, record in {"broken_study": "study.json", "causal_folder": "causal.json"}.items():
        held[name] = folder / name
        held[name].mkdir()
        (held[name] / record).write_text('{"best_layer": ')
    held["vectors"] = folder / "vectors.safetensors"
    make_vectors(lm).save(held["vectors"])
    held |= _write_masks(folder, lm)
    return {name: str(place) for name, place in held.items()}, folder


def _write_models(folder: Path, model: Path) -> dict[str, Path]:
    places = {}
    for name in ("broken_model", "cut_model"):
        places[name] = folder / name
        places[name].mkdir()
        for file in model.iterdir():
            (places[name] / file.name).write_bytes(file.read_bytes())
    (places["broken_model"] / "config.json").write_text('{"model_type": ')
    weights = places["cut_model"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return places


def _write_all_arrays(folder: Path) -> dict[str, Path]:
    names = ("arrays", "ragged", "nan", "pickled", "one_sided", "integers", "flat", "few")
    places = {name: write_arrays(folder / name) for name in names}
    file = "alpha_positive.npy"
    one = np.load(places["arrays"] / file)
    bad = {"ragged": one[:, :, :4], "nan": np.full_like(one, np.nan), "integers": one.astype(int), "flat": one[0, 0]}
    for name, values in bad.items():
        np.save(places[name] / file, values)
    np.save(places["pickled"] / file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (places["one_sided"] / file).unlink()
    for each in places["few"].iterdir():
        np.save(each, np.load(each)[:, :3])
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    single = {"rows": rows, "fewer": rows[:30], "wider": np.tile(rows, 2), "layered": np.stack([rows, rows])}
    single["not_finite"] = np.where(rows == rows.max(), np.nan, rows)
    for name, values in single.items():
        places[name] = folder / f"{name}.npy"
        np.save(places[name], values)
    return places


def _write_masks(folder: Path, lm) -> dict[str, Path]:
    from utils.subnetworks.build import calibrate, persona_mask

    texts = pd.DataFrame(
        {"statement": ["I like cats.", "The state helps."], "persona": "warm", "direction": "positive"}
    )
    made = calibrate(lm, texts, texts.assign(direction="negative"), role="system", progress=False)
    places = {"calibration": folder / "calibration.safetensors", "mask": folder / "mask.safetensors"}
    made.save(places["calibration"])
    persona_mask(lm, made, sparsity=0.5, progress=False).save(places["mask"])
    return places


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """A model is read once for all rows; what cannot be read is refused each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.models.load, "load_model", functools.cache(utils.models.load.load_model))
        yield


@pytest.fixture(scope="module")
def before(site):
    return digest_folder(site[1], leave_out=()), digest_folder(Path(site[0]["study"]), leave_out=())


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_command_line(row, site, before, monkeypatch, capsys, tmp_path):
    places, folder = site[0] | {"out": str(tmp_path / "out")}, site[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    monkeypatch.setattr(sys, "argv", ["personascope", *(word.format(**places) for word in row.split())])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2, out + err
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1] if err.strip() else out.strip().splitlines()[-1]
    # Options that cannot be read are refused by the command framework, in a box with one sentence in it.
    if not last.startswith("╰"):
        assert last.startswith("personascope: "), err
        assert last.endswith((".", "?", "!")), err
        assert len(last) < 1000, err
    assert not list(tmp_path.iterdir())
    assert digest_folder(folder, leave_out=()) == before[0]
    assert digest_folder(Path(places["study"]), leave_out=()) == before[1]


H0, H1 = np.random.default_rng(0).normal(size=(2, 40, 5))
TEXTS = pd.DataFrame({"statement": ["I like cats."], "persona": "a", "direction": "positive"})
CALLS = {
    "detect, no runs": lambda lm, place: detect(H0, H1, n_runs=0),
    "detect, other nodes": lambda lm, place: detect(H0, H1[:, :3]),
    "detect, not finite": lambda lm, place: detect(H0, H1 * np.nan),
    "detect, a score": lambda lm, place: detect(H0, H1, score="entropy"),
    "detect, a tail": lambda lm, place: detect(H0, H1, tail="up"),
    "detect, too few": lambda lm, place: detect(H0[:3], H1[:3]),
    "detect, pairs": lambda lm, place: detect(H0, H1, pairs=np.arange(3)),
    "detect, alphas": lambda lm, place: detect(H0, H1, alphas=0),
    "detect, alpha_max": lambda lm, place: detect(H0, H1, alpha_max=2.0),
    "detect, restarts": lambda lm, place: detect(H0, H1, restarts=0),
    "run_scans, one sample": lambda lm, place: run_scans(Background(H0), H0[:4], H1, n_clean=2, n_anomalous=2),
    "run_scans, too few": lambda lm, place: run_scans(Background(H0), H0[:1], H1, n_clean=9),
    "background, empty": lambda lm, place: Background(np.empty((0, 5))),
    "background, not finite": lambda lm, place: Background(H0 * np.inf),
    "p-values of other nodes": lambda lm, place: Background(H0).pvalues(H1[:, :2]),
    "p-values, a tail": lambda lm, place: Background(H0).pvalues(H1, tail="up"),
    "scan, above 1": lambda lm, place: scan(np.full((3, 3), 2.0)),
    "scan, empty": lambda lm, place: scan(np.empty((0, 3))),
    "separation_test, not finite": lambda lm, place: separation_test(H0, H1 * np.nan),
    "separation_test, ridge": lambda lm, place: separation_test(H0, H1, ridge=-1.0),
    "node_test, a correction": lambda lm, place: node_test(H0, H1, correction="none"),
    "node_test, one statement": lambda lm, place: node_test(H0[:1], H1[:1]),
    "calibrated_scan, permutations": lambda lm, place: calibrated_scan(H0, H1, n_permutations=-1),
    "runs, nowhere": lambda lm, place: ScanRuns.load(place / "nowhere.parquet"),
    "runs, no runs": lambda lm, place: ScanRuns.load(place / "file"),
    "read_runs, nowhere": lambda lm, place: read_runs(place / "nowhere"),
    "read_runs, no runs": lambda lm, place: read_runs(place / "file"),
    "extract, nothing": lambda lm, place: extract(lm, []),
    "extract, no column": lambda lm, place: extract(lm, TEXTS.drop(columns="statement")),
    "extract, layer above": lambda lm, place: extract(lm, TEXTS, layers=[9]),
    "extract, layer below": lambda lm, place: extract(lm, TEXTS, layers=[-1]),
    "extract, no layer": lambda lm, place: extract(lm, TEXTS, layers=[]),
    "extract, a component": lambda lm, place: extract(lm, TEXTS, component="ffn"),
    "extract, a position": lambda lm, place: extract(lm, TEXTS, position="first"),
    "extract, no position": lambda lm, place: extract(lm, TEXTS, position=()),
    "extract, batches": lambda lm, place: extract(lm, TEXTS, batch_size=0),
    "extract, long": lambda lm, place: extract(lm, ["I like cats. " * 200]),
    "extract, into a file": lambda lm, place: extract(lm, TEXTS, store=place / "file"),
    "extract, below a file": lambda lm, place: extract(lm, TEXTS, store=place / "file" / "a.zarr"),
    "open_store, nowhere": lambda lm, place: open_store(place / "nowhere"),
    "open_store, a file": lambda lm, place: open_store(place / "file"),
    "open_store, no store": lambda lm, place: open_store(place / "empty"),
    "open_study": lambda lm, place: open_study(place / "empty"),
    "check_run": lambda lm, place: check_run(place / "empty"),
    "load_statements, a persona": lambda lm, place: load_statements(personas=["opennes"]),
    "load_statements, topics": lambda lm, place: load_statements(topics=["nowhere"]),
    "load_statements, per side": lambda lm, place: load_statements(per_side=0),
    "load_questions": lambda lm, place: load_questions(str(place / "file")),
    "load_identities": lambda lm, place: load_identities(str(place / "file")),
    "find_contrasts, a persona": lambda lm, place: find_contrasts(load_statements(), personas=["nobody"]),
    "find_contrasts, a name": lambda lm, place: find_contrasts(load_statements(), contrast="others"),
    "draw_parts": lambda lm, place: draw_parts(load_statements(personas=["openness"]), n_pairs=10**6, rng=0),
    "best_layer": lambda lm, place: best_layer(pd.DataFrame()),
    "reduce, a method": lambda lm, place: reduce(extract(lm, TEXTS, progress=False), method="none"),
    "persona_vectors, no contrasts": lambda lm, place: persona_vectors(extract(lm, TEXTS, progress=False), []),
    "vectors, nowhere": lambda lm, place: PersonaVectors.load(place / "nowhere"),
    "vectors, no vectors": lambda lm, place: PersonaVectors.load(place / "file"),
    "mask, no mask": lambda lm, place: PersonaMask.load(place / "file"),
    "calibration, no calibration": lambda lm, place: Calibration.load(place / "file"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "empty").mkdir()
    (folder / "file").write_text(json.dumps({"neither": "this nor that"}))
    return folder


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call(name, place):
    lm = _tiny()
    before = digest_folder(place)
    with pytest.raises((ValueError, OSError)) as error:
        CALLS[name](lm, place)
    text = str(error.value)
    assert text, "no message"
    assert "\n" not in text.strip(), text
    assert 15 < len(text) < 1000, text
    assert digest_folder(place) == before
    assert {each.name for each in place.iterdir()} == {"empty", "file"}


@functools.cache
def _tiny():
    return make_lm()


def test_there_are_enough():
    assert len(ROWS) + len(CALLS) >= 250
