"""Names of personas as people write them: short ones, and what was meant by a misspelt one."""

import difflib
from collections.abc import Iterable
from typing import Any

_PREFIXES = ("subscribes-to-", "politically-")


def short_name(persona: str) -> str:
    """A persona's name as it fits beside an axis."""
    for prefix in _PREFIXES:
        persona = persona.removeprefix(prefix)
    return persona


def find_names(kind: str, wanted: Iterable[str], known: Iterable[str]) -> list[str]:
    """The known names that the wanted ones stand for, in their order: themselves, or their :func:`short_name`.

    Raises
    ------
    ValueError
        A wanted name is not known, with near matches, or a short one stands for several.
    """
    known = list(dict.fromkeys(known))
    return [_find(kind, name, known) for name in wanted]


class ByPersona(dict[str, Any]):
    """A dict by persona that also answers to short names, and tells near matches of a misspelt one.

    As of every dict, ``in`` and ``get`` know the full names only.
    """

    def __missing__(self, name: str) -> Any:
        try:
            (found,) = find_names("persona", [name], self)
        except ValueError as error:
            raise KeyError(str(error)) from None
        return self[found]


def _find(kind: str, name: str, known: list[str]) -> str:
    if name in known:
        return name
    meant = [full for full in known if short_name(full) == name]
    if len(meant) == 1:
        return meant[0]
    # People misspell the short name as well as the full one.
    spelt = {form: full for full in known for form in (short_name(full), full)}
    near = meant or list(dict.fromkeys(spelt[form] for form in difflib.get_close_matches(name, spelt, n=3, cutoff=0.4)))
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(known)}."
    raise ValueError(f"unknown {kind} {name!r}; {hint}")
