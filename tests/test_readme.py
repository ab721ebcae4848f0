"""What README.md and the site tell a reader to type: Python runs, commands and their options exist, links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from utils.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(language):
    """(page, text) of every block of code."""
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(
            re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        )
    ]


@pytest.mark.parametrize("code", blocks_of("python"))
def test_python_runs_as_it_stands(code, wired):
    _, study = wired
    # The small study of the tests stands in for that of the embedded model.
    for written, stands_in in {
        '"output/SmolLM2-135M-Instruct"': repr(str(study.folder)),
        "load_model()": f"load_model({study.config['model']!r}, device='cpu')",
        "load_statements(": f"load_statements({study.config['statements']!r}, ",
        "layer=29": f"layer={study.best_layer}",
        '"openness"': repr(study.personas[0]),
    }.items():
        code = code.replace(written, stands_in)
    assert "SmolLM2" not in code
    exec(compile(code, "snippet", "exec"), {})


def find_command(words):
    """The command that words name, and the words after it."""
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("text", blocks_of("sh"))
def test_commands_and_their_options_exist(text):
    lines = [
        line.partition("personascope")[2]
        for line in text.replace("\\\n", " ").splitlines()
        if "personascope " in line.partition("#")[0]
    ]
    for line in lines:
        words = shlex.split(line, comments=True)
        command, rest = find_command(words)
        assert rest != words or words == ["--help"], line
        known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        places = [page.parent / link]
        if page.parent.name == "docs":  # where the site has what it is made of
            places += [ROOT / link, ROOT / "output" / "example" / link]
            if link.startswith("api/"):
                places += [ROOT / Path(link).stem, ROOT / "utils" / Path(link).stem]
        assert any(place.exists() for place in places), link


def test_the_readme_fits_two_screens_and_names_every_folder():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    folders = [place.name for place in (ROOT / "utils").iterdir() if (place / "__init__.py").is_file()]
    assert folders
    assert not [name for name in folders if f"`{name}/`" not in text]
    assert not [place.stem for place in (ROOT / "notebooks").glob("*.ipynb") if f"`{place.stem}`" not in text]
