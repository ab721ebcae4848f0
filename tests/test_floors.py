import contextlib
import io

from importlinter import cli


def test_imports_run_downwards_and_in_no_circle(request, monkeypatch):
    """The contracts are in pyproject.toml."""
    monkeypatch.chdir(request.config.rootpath)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = cli.lint_imports(no_cache=True)
    assert status == 0, said.getvalue()
