import subprocess
import sys


def test_imports_run_downwards_and_in_no_circle(request):
    """The contracts are in pyproject.toml."""
    # In a process of its own, as the linter turns other loggers off.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    made = subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
