"""Class names in pictures, in any script: a font that has their letters, or an escaped form that tells them apart."""
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

Font = ImageFont.FreeTypeFont
BASE = "DejaVu Sans"  # comes with matplotlib; has Latin, Greek, Cyrillic, Arabic
NEEDED = frozenset(range(32, 127)) | {ord("…")}  # for scores, ids and what is escaped


@lru_cache(maxsize=256)
def font_for(text: str, size: float) -> Font:
    """The font, of `size` px, that has the most letters of the text."""
    return ImageFont.truetype(best_font(text).fname, max(1, round(size)))


def families(texts: Iterable[str]) -> list[str]:
    """The font families with which matplotlib can write all of the texts."""
    return list(dict.fromkeys([BASE, *(best_font(text).name for text in texts)]))


def shown_names(names: Mapping[int, str], length: int) -> dict[int, str]:
    """What a picture shows for the class names, by id: at most about `length` characters, no two alike.

    Letters that no font here has are escaped. A name with such letters, and one that shows like another, begins with
    its id.
    """
    legible = {i: escaped(name) for i, name in names.items()}
    shown = {i: shortened(name, length) for i, name in legible.items()}
    looks = Counter(map(_look, shown.values()))
    return {i: text if legible[i] == names[i] and looks[_look(text)] == 1 else shortened(f"{i}: {legible[i]}", length)
            for i, text in shown.items()}


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def columns_of(text: str) -> int:
    """The width of a text in that of Latin letters, about: Chinese, Japanese and Korean ones are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def escaped(text: str) -> str:
    """The text with \\u1234 for what the best font for it lacks, and for line breaks and their like."""
    known = _letters(best_font(text).fname)
    return "".join(c if ord(c) in known and unicodedata.category(c) != "Cc" else
                   c.encode("unicode_escape").decode() for c in text)


@lru_cache(maxsize=4096)
def best_font(text: str) -> font_manager.FontEntry:
    """Of the installed fonts the one with the most letters of the text; BASE, if no other has more."""
    base = _fonts()[0]
    lacking = {ord(c) for c in text} - _letters(base.fname)
    if not lacking:
        return base
    needed = NEEDED | {ord(c) for c in text}
    return max(_fonts(), key=lambda font: len(needed & _letters(font.fname)) if NEEDED <= _letters(font.fname) else -1)


@lru_cache
def _fonts() -> list[font_manager.FontEntry]:
    """Upright fonts of normal weight, BASE first; without those that draw a box for every letter, or colours."""
    fonts = [font for font in font_manager.fontManager.ttflist
             if font.style == "normal" and font.weight in (400, "normal", "regular")
             and not any(word in font.name for word in ("Last Resort", "Emoji"))]
    base = Path(font_manager.findfont(BASE))
    return sorted(fonts, key=lambda font: (Path(font.fname) != base, font.name != BASE, font.name, font.fname))


@lru_cache
def _letters(file: str) -> frozenset[int]:
    """The code points that a font file has; none if it cannot be read."""
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _look(text: str) -> str:
    """The same for texts that a reader would not tell apart: accents composed or not, invisible marks, spaces."""
    visible = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join(visible.split())
