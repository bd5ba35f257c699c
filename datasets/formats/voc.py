"""Pascal VOC's layout: Annotations/NAME.xml, JPEGImages/NAME.jpg, and ImageSets/Main/SPLIT.txt with the names.

A box is from pixel xmin to pixel xmax, both in it, counted from 1 (Everingham et al., IJCV 2010); objects that are
marked as difficult are crowd regions: neither learned nor counted.
"""
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import CROWD_WORDS, Problem
from datasets.formats.listing import SUFFIXES, header_size
from datasets.formats.parsed import Parsed
from datasets.formats.source import Layout, Source
from datasets.formats.xml_lines import Element, read_xml
from datasets.table import make_table
from util.class_names import ClassNames
from util.errors import UserError

SPLIT_FILES = {"train": ("train.txt", "trainval.txt"), "val": ("val.txt",), "test": ("test.txt",)}


class VocSource(Source):
    """list_file: the names of the images; None: those of all files in `annotations`. The classes are those of all
    files in `annotations`, of every split, sorted by name: category ids from 1."""

    def __init__(self, title: str, annotations: Path, images: Path, list_file: Path | None):
        super().__init__(title, annotations, [images])
        self.list_file = list_file

    def names(self) -> ClassNames:
        names = set()
        for path in sorted(self.annotations.glob("*.xml")):
            try:
                objects = read_xml(path).all("object")
            except UserError:  # reading its split will say so
                continue
            names |= {name.text for found in objects if (name := found.first("name")) and name.text}
        return dict(enumerate(sorted(names), 1))

    def files(self) -> Iterable[Path]:
        if self.list_file:
            yield self.list_file
        yield from sorted(self.annotations.glob("*.xml"))
        yield from sorted(self.folders[0].iterdir())

    def parts(self) -> Iterable[Any]:
        return [*super().parts(), self.list_file]

    def read(self) -> Parsed:
        names = self.names()
        images, problems = self._images(_listed(self.annotations, self.list_file))
        reading = _Reading({name: i for i, name in names.items()}, problems)
        for index, (stem, image) in enumerate(images):
            reading.add(index, self.annotations / f"{stem}.xml", self.folders[0] / image)
        if images and sum(problem.kind == "no_labels" for problem in problems) == len(images):
            raise UserError(f"{self.annotations}: none of the {len(images)} images of {self.title} has a file there")
        boxes = np.array(reading.boxes, np.float64).reshape(-1, 4)
        table = make_table(names, list(range(1, len(images) + 1)), [image for _, image in images],
                           np.array(reading.sizes, np.float64), np.array(reading.images, np.int64), boxes,
                           np.array(reading.labels, np.int64), boxes[:, 2] * boxes[:, 3],
                           np.array(reading.difficult, bool))
        return Parsed(table, problems=problems)

    def _images(self, stems: Sequence[str]) -> tuple[list[tuple[str, str]], list[Problem]]:
        """The file of each name; .jpg where there is none."""
        files = defaultdict(list)
        for path in sorted(self.folders[0].iterdir()):
            if path.suffix.lower() in SUFFIXES:
                files[path.stem].append(path.name)
        problems = [Problem("repeated_name", f"{' and '.join(files[stem])} in {self.folders[0]} are images of one "
                                             "name, and it is unknown which of them the annotations are about", {})
                    for stem in stems if len(files[stem]) > 1]
        return [(stem, (files[stem] or [f"{stem}.jpg"])[0]) for stem in stems if len(files[stem]) <= 1], problems


def voc(root: Path) -> Layout | None:
    annotations = root / "Annotations"
    if not annotations.is_dir():
        return None
    images = root / "JPEGImages"
    if not images.is_dir():
        raise UserError(f"no image folder {images}")
    sets = root / "ImageSets" / "Main"
    files = {split: next((sets / name for name in names if (sets / name).is_file()), None)
             for split, names in SPLIT_FILES.items()}
    if not any(files.values()):
        return Layout("Pascal VOC", root, {"train": VocSource(root.name, annotations, images, None)}, HOLDS)
    sources = {split: VocSource(f"{root.name} {split}", annotations, images, path)
               for split, path in files.items() if path is not None}
    return Layout("Pascal VOC", root, sources, HOLDS)


HOLDS = ", ".join(f"ImageSets/Main/{names[0]}" for names in SPLIT_FILES.values())


def _listed(annotations: Path, list_file: Path | None) -> list[str]:
    """The sorted names of a list, whose lines may go on after the name."""
    if list_file is None:
        return sorted(path.stem for path in annotations.glob("*.xml"))
    try:
        lines = list_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {list_file}: {error}") from error
    names = {}
    for number, line in enumerate(lines, 1):
        if words := line.split():
            if "/" in words[0] or "\\" in words[0] or "\0" in words[0] or words[0] in (".", ".."):
                raise UserError(f"{list_file}, line {number}: {words[0]!r} is no name of an image in JPEGImages")
            names[words[0]] = number
    if not names:
        raise UserError(f"{list_file}: no image is listed")
    return sorted(names)


class _Reading:
    """The boxes of the files so far; `problems` grows."""

    def __init__(self, ids: dict[str, int], problems: list[Problem]):
        self.ids, self.problems = ids, problems
        self.sizes: list[tuple[float, float]] = []
        self.images: list[int] = []
        self.boxes: list[list[float]] = []
        self.labels: list[int] = []
        self.difficult: list[bool] = []

    def add(self, index: int, path: Path, image: Path) -> None:
        try:
            annotation = read_xml(path) if path.is_file() else None
        except UserError as error:
            self.problems.append(Problem("bad_line", str(error), {}))
            self.sizes.append(header_size(image))
            return
        if annotation is None:
            self.problems.append(Problem("no_labels", f"{image}: no {path}", {}))
            self.sizes.append(header_size(image))
            return
        self.sizes.append(self._size(annotation, path, image))
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
