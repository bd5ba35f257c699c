"""Large JSON files in parts: a list is never in memory as a whole."""
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

BLOCK = 1 << 22  # characters that are read at once
ONE_BY_ONE = 1000  # items that are read before many at once are tried again
_SCAN = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # (text, position) -> value, end
_AFTER = {*" \t\n\r,]}"}  # what may follow a number that is complete
_SPACE = re.compile(r"[ \t\n\r]*")


def read_parts(path: Path, skipped: str) -> Iterator[tuple[str, Any]]:
    """(key, value) for each entry of the JSON object in a file; a list comes in parts, at least one, under one key.

    skipped: name of a key, wherever it is, whose value comes as an empty list if it is a list of numbers, or of such
    lists: reading millions of numbers takes most of the time, so that a mistake among them is not noticed. Raises
    ValueError if the file is not a JSON object, or has a key twice.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _Reader(file, f'"{skipped}"').entries()


class _Reader:
    """`text` from `at` on is what is still to be read."""

    def __init__(self, file: TextIO, skipped: str):
        self.file, self.skipped, self.text, self.at = file, skipped, "", 0

    def entries(self) -> Iterator[tuple[str, Any]]:
        self._take("{")
        if self._next() == "}":
            self._take("}")
        else:
            keys: set[str] = set()
            while True:
                key = self._value()
                if not isinstance(key, str) or key in keys:
                    raise ValueError("a key is no text, or there twice")
                keys.add(key)
                self._take(":")
                if self._next() == "[":
                    for part in self._list():
                        yield key, part
                else:
                    yield key, self._value()
                if self._take(",}") == "}":
                    break
        if self._next():
            raise ValueError("something follows the object")

    def _list(self) -> Iterator[list]:
        self._take("[")
        if self._next() == "]":
            self._take("]")
            yield []
            return
        mark = ","
        while mark == ",":
            items = self._many() or [self._value()]
            while (mark := self._take(",]")) == "," and len(items) < ONE_BY_ONE:
                items.append(self._value())
            yield items

    def _many(self) -> list:
        """The objects of which the text holds the end, up to the last before a comma or the end of the list."""
        self._next()
        if (end := self.text.rfind("},", self.at) + 1) == 0 and self._more():
            end = self.text.rfind("},") + 1
        try:
            items, stop = _SCAN(f"[{self.text[self.at:end]}]", 0)
        except (ValueError, StopIteration):  # the comma is within an object
            return []
        self.at += stop - 2  # without the brackets
        return items

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = _SCAN(self.text, self.at)
            except (ValueError, StopIteration):
                if not self._more():
                    raise ValueError("the file ends within a value, or a value is none") from None
                continue
            if self.text[end:end + 1] in _AFTER or not isinstance(value, float | int) or not self._more():
                self.at = end
                return value

    def _take(self, wanted: str) -> str:
        found = self._next()
        if not found or found not in wanted:
            raise ValueError(f"expected {wanted}")
        self.at += 1
        return found

    def _next(self) -> str:
        """The next character that is no space, at which `at` then is; empty at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches anything
            if self.at < len(self.text) or not self._more():
                return self.text[self.at:self.at + 1]

    def _more(self) -> bool:
        """Reads on. After this, positions are those of another text."""
        block = self.file.read(max(BLOCK, len(self.text) - self.at))
        self.text, self.at = _without_numbers(self.text[self.at:] + block, self.skipped), 0
        return bool(block)


def _without_numbers(text: str, key: str) -> str:
    """The text with [] for each list of numbers that is the value of `key`. No quote or brace occurs in such a list."""
    first, *others = text.split(key)
    parts = [first]
    for other in others:
        quote = other.find('"')
        limit = other.find("}", 0, quote) if quote >= 0 else other.find("}")
        end = other.rfind("]", 0, limit if limit >= 0 else max(quote, 0))
        is_list = (end >= 0 and other[:20].lstrip(" \t\n\r:").startswith("[")
                   and other.count("[", 0, end) == other.count("]", 0, end) + 1)  # else it may end elsewhere
        parts.append(f"{key}:[]{other[end + 1:]}" if is_list else key + other)
    return "".join(parts)
