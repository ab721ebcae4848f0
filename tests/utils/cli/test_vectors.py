import pytest
import typer
from sided import make_vectors
from typer.testing import CliRunner

from utils.cli.vectors import generate
from utils.vectors.export import write_gguf


@pytest.fixture
def lm(tiny):
    return tiny(max_position_embeddings=1024)


@pytest.fixture
def run(lm, monkeypatch):
    """Runs ``personascope generate ...`` on a tiny model."""
    monkeypatch.setattr("utils.models.load.load_model", lambda *_args, **_options: lm)

    app = typer.Typer()
    app.command()(generate)

    def call(*arguments):
        given = [str(argument) for argument in arguments]
        return CliRunner().invoke(app, ["Cats?", "--max-tokens", "3", *given], catch_exceptions=False)

    return call


@pytest.fixture
def file(lm, tmp_path):
    make_vectors(lm).save(tmp_path / "v.safetensors")
    return tmp_path / "v.safetensors"


def test_plain_and_steered_side_by_side(run, lm, file):
    shown = run("--vectors", file, "--steer", "warm=3", "--steer", "terse=-3", "--layer", 1, "--layer", 2).output
    assert "layers 1, 2" in shown
    plain = lm.generate("Cats?", max_tokens=3)[0]
    assert f"]: {plain}\n" in shown
    assert "steered [warm " in shown


def test_a_sweep_is_a_table(run, lm, file):
    shown = run("--vectors", file, "--steer", "warm", "--sweep", "-2:2:3", "--layer", 2).output
    lines = [line for line in shown.splitlines() if line.startswith(("+", "-"))]
    assert [line.split()[0] for line in lines] == ["-2.000", "+0.000", "+2.000"]
    assert " ".join(lm.generate("Cats?", max_tokens=3)[0].split()) in lines[1]


def test_caps_and_ablations_and_a_control_vector(run, lm, file, tmp_path):
    assert "steered" in run("--vectors", file, "--cap", "warm=:0.1", "--ablate", "terse", "--tokens", "answer").output
    write_gguf(tmp_path / "v.gguf", make_vectors(lm)["warm"], lm, layers=[2])
    assert "layers 2;" in run("--vectors", tmp_path / "v.gguf", "--steer", "warm=1").output


def test_vectors_are_fitted_where_no_file_is_given(run):
    assert "steered [openness " in run("--steer", "openness=0.5").output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing is to be done"),
        (["--steer", "warm"], "is not PERSONA=STRENGTH"),
        (["--cap", "warm=3"], "is not PERSONA=LOW:HIGH"),
        (["--steer", "warm=1", "--steer", "terse=1", "--sweep", "0:1:3"], "strengths of one persona, not of 2"),
        (["--steer", "warm=1", "--sweep", "0:1"], "is not FROM:TO:STEPS"),
        (["--steer", "warmth=1"], "did you mean warm"),
        (["--steer", "warm=1", "--layer", "9"], "no vectors at layers"),
    ],
)
def test_bad_input(run, file, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        run("--vectors", file, *arguments)
