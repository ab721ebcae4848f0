import importlib.metadata
import logging
import re
import subprocess
import sys

import numpy as np
import pytest

import utils.study.run
from utils.cli.main import main
from utils.statements.load import DATA
from utils.study.settings import StudyConfig

SMALL = ["--runs", "2", "--permutations", "19", "--clean", "3", "--anomalous", "3", "--jobs", "1"]


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process: ``command(*words)`` gives the exit status, stdout and stderr."""
    # The command sets up logging to stderr, which must not outlive it.
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["personascope", *map(str, words)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def arrays(tmp_path):
    """Two personas, one layer, no effect."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "arrays"
    folder.mkdir()
    for persona in ("alpha", "beta"):
        for direction in ("positive", "negative"):
            np.save(folder / f"{persona}_{direction}.npy", rng.normal(size=(20, 6)).astype(np.float32))
    return folder


@pytest.fixture
def bare(monkeypatch):
    """Studies without figures and report."""
    monkeypatch.setattr(utils.study.run, "draw_figures", lambda study: (study.folder / "figures").mkdir(exist_ok=True))
    monkeypatch.setattr(utils.study.run, "write_report", lambda study: None)


def write_csv(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def check_refusal(result, message):
    """One sentence on stderr and exit status 2, and nothing else."""
    status, out, err = result
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert err.startswith("personascope: ")
    assert err.count("\n") == 1, err
    assert err.rstrip().endswith((".", "?")), err


def test_the_version_is_that_of_the_package(command):
    status, out, _ = command("--version")
    assert status == 0
    assert out == f"personascope {importlib.metadata.version('personascope')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--personas", "politically-libral"],
            "unknown persona 'politically-libral'; did you mean politically-liberal",
        ),
        (["--personas", "zzz"], "known are: .*extraversion"),
        (["--topics", "politcs"], "did you mean politics"),
        (["--statements", "/nowhere/at-all.csv"], "no statements at /nowhere/at-all.csv"),
        (["--layers", "1-x"], "--layers '1-x' is not a list of whole numbers"),
        (["--layers", ""], "--layers '' is not a list"),
        (["--scan-layers", "six"], "--scan-layers 'six' is not a list"),
        (["--batch-size", "0"], "--batch-size '0' is not a whole number above 0 or auto"),
        (["--batch-size", "many"], "--batch-size 'many'"),
        (["--activations", "/nowhere"], "no folder /nowhere"),
        (["--clean", "500"], "smaller --clean and --anomalous"),
    ],
)
def test_bad_options_get_one_sentence(command, tmp_path, words, message):
    check_refusal(command("study", "--out", tmp_path / "out", *words), message)
    assert not (tmp_path / "out" / "study.json").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["statement,persona", "I like tea.,tea"], "no column direction; found: statement, persona"),
        (["text,direction,persona", "I like tea.,positive,tea"], "no column statement"),
        (["statement,direction,persona", "I like tea.,positive,tea"], "'tea' has no negative statements"),
        (["statement,direction,persona", "I like tea.,maybe,tea"], "line 2: unknown direction 'maybe'"),
        (["statement,direction,persona"], "header but no rows"),
        (
            [
                "statement,direction,persona",
                *[f"Tea {i}.,{side},tea" for i in range(9) for side in ("positive", "negative")],
            ],
            "'tea' has 2 H1 and 2 H0 statements in its select part.*at least 5.*give more statements",
        ),
    ],
)
def test_bad_statements_get_one_sentence(command, tmp_path, lines, message):
    path = write_csv(tmp_path / "tea.csv", lines)
    check_refusal(command("study", "--statements", path, "--out", tmp_path / "out"), message)


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing.gguf", "/nowhere/model"])
@pytest.mark.parametrize("words", [["info"], ["study", "--topics", "politics"]])
def test_a_model_that_is_not_there(command, tmp_path, name, words):
    options = ["--out", tmp_path / "out"] if words[0] == "study" else []
    check_refusal(command(*words, "--model", name, *options), re.escape(name.removeprefix("./")))


@pytest.mark.parametrize("deeper", [False, True])
def test_a_file_in_the_way_of_the_folder(command, tmp_path, arrays, deeper):
    (tmp_path / "out").write_text("mine")
    out = tmp_path / "out" / "study" if deeper else tmp_path / "out"
    check_refusal(command("study", "--activations", arrays, "--out", out, *SMALL), "cannot write to .*--out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ["--score", "entropy"],
        ["--permutations", "18"],
        ["--runs", "0"],
        ["--tail", "up"],
        ["--contrast", "none"],
        ["--x"],
    ],
)
def test_options_out_of_range_exit_with_2(command, words):
    status, _, err = command("study", *words)
    assert status == 2
    assert words[0] in err
    assert "Traceback" not in err


def test_a_small_study_prints_its_table_and_where_the_report_is(command, arrays, tmp_path, bare):
    status, out, _ = command("study", "--activations", arrays, "--out", tmp_path / "out", *SMALL)
    assert status == 0
    assert (tmp_path / "out" / "study.json").exists()
    header, *rows = out.splitlines()[:3]
    assert "p adjusted" in header
    assert [row.split()[0] for row in rows] == ["alpha", "beta"]
    assert "layer 1 was scanned" in out
    assert str(tmp_path / "out" / "report.html") in out

    status, out, _ = command("power", tmp_path / "out", "--sizes", "5,8", "--plant", "2,3", "--draws", 2)
    assert status == 0
    assert "the node test would have found, of 2" in out
    assert "layer 1: 2 nodes shifted by 3 SD, adjusted" in out
    assert {"power.parquet", "power.png"} <= {file.name for file in (tmp_path / "out" / "power").iterdir()}
    for words, message in (
        (("--layer", 99), "the study has no layer 99; it has"),
        (("--plant", "2"), "--plant '2' is not NODES,SD such as 30,0.25."),
    ):
        check_refusal(command("power", tmp_path / "out", *words), message)


def test_options_reach_the_study(command, arrays, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(utils.study.run, "run_study", lambda out, config: seen.append((out, config)) or sys.exit(0))
    words = [
        "--activations",
        arrays,
        "--layers",
        "0,4-6",
        "--scan-layers",
        "3",
        "--personas",
        " alpha, beta",
        "--seed",
        7,
    ]
    words += ["--contrast", "one-vs-rest", "--scan", "individual", "--score", "hc", "--tail", "left", "--clean", 3]
    words += ["--anomalous", 4, "--batch-size", "8", "--position", "mean", "--role", "user", "--threshold", "0.8"]
    assert command("study", *words, "--runs", 5, "--permutations", 20, "--out", tmp_path)[0] == 0
    ((out, config),) = seen
    assert out == tmp_path
    assert (config.layers, config.scan_layers, config.personas) == ([0, 4, 5, 6], [3], ["alpha", "beta"])
    assert (config.contrast, config.scan, config.score, config.tail) == ("one-vs-rest", "individual", "hc", "left")
    assert (config.n_clean, config.n_anomalous, config.runs, config.permutations) == (3, 4, 5, 20)
    assert (config.batch_size, config.position, config.role, config.seed) == (8, "mean", "user", 7)
    assert config.threshold == 0.8


def test_defaults_are_those_of_the_library(command, monkeypatch):
    seen = []
    monkeypatch.setattr(utils.study.run, "run_study", lambda out, config: seen.append(config) or sys.exit(0))
    command("study")
    plain = StudyConfig(device="auto", dtype="auto", scan_layers=[])
    assert seen[0] == plain


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["--model", "org/Some-Model"], "output/Some-Model"),
        (["--model", "files/some.gguf"], "output/some"),
        (["--activations", "data/arrays/"], "output/arrays"),
        (["--model", "m", "--statements", "my/tea.csv", "--contrast", "one-vs-rest"], "output/m-tea-one-vs-rest"),
        (["--model", "m", "--position", "mean"], "output/m-mean"),
        (["--model", "m", "--position", "last,statement"], "output/m-last-statement"),
    ],
)
def test_the_folder_is_named_after_the_input(command, monkeypatch, words, folder):
    seen = []
    monkeypatch.setattr(utils.study.run, "run_study", lambda out, config: seen.append(out) or sys.exit(0))
    command("study", *words)
    assert seen[0].as_posix() == folder


def test_help_has_examples(command):
    status, out, _ = command("study", "--help")
    assert status == 0
    assert "Examples" in out
    assert out.count("personascope study") >= 4
    for option in ("--model --statements --personas --topics --layers --position --out --device --dtype").split():
        assert option in out
    for option in ("--batch-size --seed --runs --score --tail --contrast --scan --scan-layers --permutations").split():
        assert option in out
    assert {"study", "power", "info", "compare", "patch", "mask"} <= set(command("--help")[1].replace("│", " ").split())


def test_info_prints_the_anatomy(command):
    status, out, _ = command("info")
    assert status == 0
    for name, value in {
        "layers": "0 to 30",
        "d_model": "576",
        "heads": "9 of width 64, 3 key-value heads",
        "class": "LlamaForCausalLM",
        "dtype, device": "float32, cpu",
        "statement role": "system",
    }.items():
        assert re.search(rf"^ *{name} +{value}$", out, flags=re.MULTILINE), out
    assert "STATEMENT" in out
    assert "SmolLM2-135M" in out


def test_ctrl_c_exits_with_130(command, arrays, tmp_path, monkeypatch):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(utils.study.run, "divergence", stop)
    status, _, err = command("study", "--activations", arrays, "--out", tmp_path / "out", *SMALL)
    assert status == 130
    assert "Traceback" not in err
    assert (tmp_path / "out" / "activations.zarr").exists()


def test_debug_shows_the_traceback(command):
    status, _, err = command("--debug", "study", "--layers", "x")
    assert status == 2
    assert "Traceback" in err
    assert "personascope: --layers" in err


def test_the_command_in_a_process_of_its_own(tmp_path):
    """Exit status and stderr as a shell sees them."""
    words = [sys.executable, "-m", "personascope", "study", "--personas", "opennes"]
    done = subprocess.run(
        [*words, "--out", str(tmp_path)], cwd=DATA.parent, capture_output=True, text=True, check=False, timeout=120
    )
    check_refusal((done.returncode, done.stdout, done.stderr), "did you mean openness")


def test_compare_wants_two_studies(command, tmp_path):
    status, _, err = command("compare", str(tmp_path), str(tmp_path / "other"))
    assert status == 2
    assert "holds no finished study" in err
