"""Names that users gave, as they are drawn: nothing in them is markup, and every character has a glyph."""

import logging
from functools import lru_cache

import matplotlib.pyplot as plt
from anyascii import anyascii
from matplotlib import font_manager, ft2font

from utils.statements.names import short_name

logger = logging.getLogger(__name__)

_LONGEST = 48
# A character of each of the writings with most readers, and a picture: Chinese, Japanese, Korean, Arabic, Hebrew, Devanagari,
# Bengali, Tamil, Thai.
_WRITINGS = "\u5317\u304b\ud55c\u0639\u05d0\u0915\u0995\u0b95\u0e01\U0001f98a"
_NO_CHARACTER = 0x0378


def persona_label(persona: str) -> str:
    """A persona's short name as it is drawn."""
    return as_label(short_name(persona))


def as_label(text: object) -> str:
    """A text as it is drawn: as it is read, whatever it holds.

    A dollar sign is no formula, a leading underscore hides nothing from a legend, and a long name is cut in its middle.
    Characters that none of the fonts of ``font.family`` has are transliterated, and a warning notes what stands for what.
    """
    shown = str(text)
    if len(shown) > _LONGEST:
        shown = f"{shown[: _LONGEST // 2]}…{shown[-_LONGEST // 2 + 1 :]}"
    shown = spell("".join(character if character.isprintable() else " " for character in shown))
    # Legends leave out what begins with an underscore; a joiner of no width comes before it.
    return ("\u2060" * shown.startswith("_") + shown).replace("$", r"\$")


def spell(text: str) -> str:
    """The text where the fonts of the day have its characters, or its transliteration."""
    missing = frozenset(text) - _glyphs(tuple(plt.rcParams["font.family"]))
    if not missing:
        return text
    spelt = "".join(anyascii(character) or "?" if character in missing else character for character in text)
    _note(text, spelt)
    return spelt


def fall_back() -> list[str]:
    """Installed fonts for what the font of the day lacks, one for each writing and for pictures, as far as there are any.

    They must stand in ``font.family`` before a figure is made, as its texts take over what stands there then.
    """
    found: list[str] = []
    for character in _WRITINGS:
        if character not in _glyphs((*plt.rcParams["font.family"], *found)) and (name := _find_font(ord(character))):
            found.append(name)
    return found


@lru_cache(maxsize=256)
def _note(text: str, spelt: str) -> None:
    """Say once what stands for what."""
    logger.warning("no installed font has all characters of %r: it is drawn as %r", text, spelt)


@lru_cache
def _glyphs(families: tuple[str, ...]) -> frozenset[str]:
    found: set[str] = set()
    for family in families:
        path = font_manager.findfont(font_manager.FontProperties(family=[family]))
        found |= {chr(code) for code in ft2font.FT2Font(path).get_charmap()}
    return frozenset(found)


def _find_font(code: int) -> str | None:
    """An installed font with a character, one without serifs and of regular weight if there is."""
    entries = sorted(
        font_manager.fontManager.ttflist,
        key=lambda font: ("sans" not in font.name.lower(), font.weight != 400, font.name),
    )
    for entry in entries:
        try:
            font = ft2font.FT2Font(entry.fname)
        except (RuntimeError, OSError):
            continue
        held = font.get_charmap()
        # Pictures in colour cannot be scaled, and not drawn; a font of last resort has a box for what is no character, too.
        if font.scalable and code in held and _NO_CHARACTER not in held:
            return entry.name
    return None


plt.rcParams["font.family"] = [*plt.rcParams["font.family"], *fall_back()]
