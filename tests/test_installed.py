import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[1]


def run(folder, *words, site):
    """Python in a folder, with a folder of packages before all others."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What a wheel of this tree puts into an environment."""
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_every_module_every_public_name_and_the_data(site):
    packages = [path.relative_to(ROOT) for name in ("deepscan", "utils") for path in (ROOT / name).rglob("*.py*")]
    assert not [path for path in packages if path.suffix in {".py", ".pyi"} and not (site / path).is_file()]
    for path in (ROOT / "data").iterdir():
        assert (site / "utils" / "data" / path.name).read_bytes() == path.read_bytes()


def test_a_wheel_works_in_another_folder(site, tmp_path):
    code = (
        "import utils, personascope; from utils import load_statements, load_questions\n"
        "print(utils.__file__, len(load_statements()) > 1000, len(load_questions()) > 50, personascope.load_statements.__name__)"
    )
    made = run(tmp_path, "-c", code, site=site)
    assert made.stdout.split() == [str(site / "utils" / "__init__.py"), "True", "True", "load_statements"], made.stderr
    shown = run(tmp_path, "-m", "personascope", "--version", site=site)
    assert shown.stdout.startswith("personascope "), shown.stderr


@pytest.mark.parametrize("words", [["-m", "personascope", "info"], ["script.py"]])
def test_a_file_called_utils_beside_the_script_is_named_in_one_sentence(words, site, tmp_path):
    (tmp_path / "utils.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "script.py").write_text("from personascope import load_model\n", encoding="utf-8")
    last = run(tmp_path, *words, site=site).stderr.splitlines()[-1]
    assert str(tmp_path / "utils.py") in last
    assert last.endswith("PYTHONPATH.")
    assert "rename" in last


def test_a_name_that_is_not_there_is_an_attribute_error():
    import personascope

    with pytest.raises(AttributeError, match="no_such_name"):
        personascope.no_such_name  # noqa: B018
