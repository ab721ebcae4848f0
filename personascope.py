"""The program under its own name: the command, ``python -m personascope``, and the names that a notebook starts with.

The packages behind it are ``utils`` and ``deepscan``. The first is also what many people call a file of their own, which
Python then finds in its place; whoever comes in here is told so.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any


def check_packages() -> None:
    """Refuse to go on with another module under the name of one of this project's packages.

    Raises
    ------
    ImportError
        Python finds another file first; which one, and what to do.
    """
    for name in ("utils", "deepscan"):
        ours = Path(__file__).resolve().parent / name / "__init__.py"
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None or Path(found.origin).resolve() != ours:
            place = None if found is None else found.origin or next(iter(found.submodule_search_locations or ()), None)
            raise ImportError(
                f"personascope needs its own package {name!r} ({ours.parent}), and Python finds {place or 'nothing'} under that "
                "name first; rename that file, or run from another folder and without it in PYTHONPATH."
            )


def main() -> None:
    """Run the command."""
    try:
        check_packages()
    except ImportError as error:
        sys.stderr.write(f"personascope: {error}\n")
        sys.exit(2)
    from utils.cli.main import main as run

    run()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    check_packages()
    import utils

    return getattr(utils, name)


if __name__ == "__main__":
    main()
