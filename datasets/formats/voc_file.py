"""The boxes of Pascal VOC's xml files."""
import math
import os
from pathlib import Path

from datasets.annotations import CROWD_WORDS, Problem
from datasets.formats.listing import header_size
from datasets.formats.xml_lines import Element, read_xml
from util.errors import UserError


class VocBoxes:
    """The boxes of the files so far; `problems` grows. ids: of the classes."""

    def __init__(self, ids: dict[str, int], problems: list[Problem]):
        self.ids, self.problems = ids, problems
        self.sizes: list[tuple[float, float]] = []
        self.images: list[int] = []
        self.boxes: list[list[float]] = []
        self.labels: list[int] = []
        self.difficult: list[bool] = []

    def add(self, index: int, path: Path, image: Path) -> None:
        """The file of the image with that index."""
        annotation = self._read(path, image)
        if annotation is None:
            self.sizes.append(header_size(image))
            return
        self.sizes.append(self._size(annotation, path, image))
        first = len(self.boxes)
        for found in annotation.all("object"):
            try:
                box, name, difficult = _box(found), _text(found, "name"), _flag(found)
            except ValueError as error:
                self.problems.append(Problem("bad_line", f"{path}, line {found.line}: {error}", {}))
                continue
            self.images.append(index)
            self.boxes.append(box)
            self.labels.append(self.ids[name])
            self.difficult.append(difficult)
        if any(-1 <= min(box[:2]) < 0 for box in self.boxes[first:]):
            self.problems.append(Problem("from_0", f"{path}", {}))

    def _read(self, path: Path, image: Path) -> Element | None:
        if not os.path.exists(path):
            self.problems.append(Problem("no_labels", f"{image}: no {path}", {}))
            return None
        try:
            return read_annotation(path)
        except UserError as error:
            self.problems.append(Problem("bad_line", str(error), {}))
            return None

    def _size(self, annotation: Element, path: Path, image: Path) -> tuple[float, float]:
        stated = annotation.first("size")
        try:
            width, height = (_number(stated, side) for side in ("width", "height"))  # type: ignore[arg-type]
            if min(width, height) > 0:
                return width, height
        except (ValueError, AttributeError):
            pass
        self.problems.append(Problem("size", f"{path}: no size", {}))
        return header_size(image)


def read_annotation(path: Path) -> Element:
    """Raises UserError for what is no annotation of an image."""
    found = read_xml(path)
    if found.tag != "annotation":
        raise UserError(f"{path}, line {found.line}: <{found.tag}> where Pascal VOC has <annotation>")
    return found


def classes_in(path: Path) -> set[str]:
    """Of the objects of a file; none of one that cannot be read, which reading its split will say."""
    try:
        objects = read_annotation(path).all("object")
    except UserError:
        return set()
    return {name.text for found in objects if (name := found.first("name")) and name.text}


def _box(found: Element) -> list[float]:
    """[x, y, width, height] in pixels from the image's corner."""
    bounds = found.first("bndbox")
    if bounds is None:
        raise ValueError("an object without a bndbox")
    left, top, right, bottom = (_number(bounds, name) for name in ("xmin", "ymin", "xmax", "ymax"))
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]


def _flag(found: Element) -> bool:
    word = found.first("difficult")
    flag = CROWD_WORDS.get(word.text.lower() if word else "")
    if flag is None:
        raise ValueError(f"difficult must be 0 or 1, got {word.text!r}")  # type: ignore[union-attr]
    return bool(flag)


def _text(parent: Element, tag: str) -> str:
    found = parent.first(tag)
    if found is None or not found.text:
        raise ValueError(f"no {tag}")
    return found.text


def _number(parent: Element, tag: str) -> float:
    text = _text(parent, tag)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{tag} must be a number, got {text!r}")
    return number
