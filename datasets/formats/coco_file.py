"""COCO annotation files as tables.

A file in which nothing is to be derived but what is left out is read in parts into arrays (`read_plainly`); any other
the way datasets/annotations.py does it, entry by entry, as a whole.
"""
import logging
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import (
    MAX_CATEGORY_ID,
    check_categories,
    entry_problems,
    is_text,
    name_in_url,
    read_content,
)
from datasets.benchmark_facts import BenchmarkFacts, FactReader
from datasets.boxes import likely_areas
from datasets.formats.json_parts import read_parts
from datasets.formats.parsed import ADVICE, Note, Parsed
from datasets.table import Table, make_table
from util.errors import UserError

NUMBERS = {int, float}
LARGEST = 1e300  # what datasets/annotations.py takes for a number


class _NotPlain(Exception):
    """The file has to be read entry by entry."""


def read_coco_file(path: Path, with_root: bool = False) -> Parsed:
    """with_root: see unused_root. Raises UserError that names the file and the first entry that cannot be used."""
    try:
        return read_plainly(path, with_root)
    except (_NotPlain, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, OSError):
        return read_by_entry(path, with_root)  # which says what is wrong


def read_by_entry(path: Path, with_root: bool = False) -> Parsed:
    """What read_coco_file returns, of any file."""
    content, derived = read_content(path)
    for problem in entry_problems(content):
        raise UserError(f"{path}: {problem.text}. {ADVICE}")
    notes = _leave_root_out(content["categories"], {a["category_id"] for a in content["annotations"]}, with_root)
    facts = FactReader(path)
    facts.add_info(content.get("info"))
    facts.add_images(content["images"])
    facts.add_annotations(content["annotations"])
    return Parsed(content_table(content, facts.facts(content["categories"])),
                  Counter(problem.kind for problem in derived), notes=notes)


def unused_root(categories: list[dict[str, Any]], used: set[int]) -> dict[str, Any] | None:
    """The category that all others have as their supercategory and that nothing is annotated with, if there is one:
    Roboflow lists the project so."""
    for root in categories:
        others = [category.get("supercategory") for category in categories if category is not root]
        if others and set(map(str, others)) == {root["name"]} and root["id"] not in used:
            return root
    return None


def _leave_root_out(categories: list[dict[str, Any]], used: set[int], with_root: bool) -> list[Note]:
    """Removes the root from the categories; what the log says of it."""
    root = unused_root(categories, used) if with_root else None
    if root is None:
        return []
    categories.remove(root)
    return [(logging.INFO, f"the category {root['name']!r}, id {root['id']}, is the root of the others, without boxes: "
                           "left out")]


def content_table(content: dict[str, Any], facts: BenchmarkFacts) -> Table:
    """The table of a file's content, in which entry_problems finds nothing, with the facts that are in it."""
    images, annotations = content["images"], content["annotations"]
    index = {image["id"]: i for i, image in enumerate(images)}
    return make_table({category["id"]: category["name"] for category in content["categories"]},
                      [image["id"] for image in images], [image["file_name"] for image in images],
                      np.array([(image["width"], image["height"]) for image in images], np.float64),
                      np.array([index[a["image_id"]] for a in annotations], np.int64),
                      np.array([a["bbox"] for a in annotations], np.float64),
                      np.array([a["category_id"] for a in annotations], np.int64),
                      np.array([a["area"] for a in annotations], np.float64),
                      np.array([a["iscrowd"] for a in annotations], bool), facts)


def read_plainly(path: Path, with_root: bool = False) -> Parsed:
    """What read_coco_file returns, of a file in which nothing is written otherwise."""
    _require(path.is_file())  # a pipe would be waited for
    images, annotations, categories, facts = _Images(), _Annotations(), [], FactReader(path)
    for key, value in read_parts(path, skipped="segmentation"):
        if key == "images":
            images.add(value)
            facts.add_images(value)
        elif key == "annotations":
            annotations.add(value)
            facts.add_annotations(value)
        elif key == "categories":
            categories += value
        elif key == "info":
            facts.add_info(value)
    check_categories(categories, path)
    names = {category["id"]: category["name"] for category in categories}
    _require(images.ids and max(names) <= MAX_CATEGORY_ID)
    ids = np.array(images.ids, np.int64)
    order = np.argsort(ids, kind="stable")
    _require((np.diff(ids[order]) > 0).all())
    columns = annotations.columns()
    place = np.searchsorted(ids, columns["image_id"], sorter=order)
    image = order[np.minimum(place, len(ids) - 1)]
    _require((ids[image] == columns["image_id"]).all() and np.isin(columns["category_id"], list(names)).all())
    boxes, areas, derived = columns["bbox"], columns["area"], annotations.derived
    own = boxes[:, 2] * boxes[:, 3]
    unlikely = columns["stated"] & ~likely_areas(areas, boxes, columns["stated"])
    derived += Counter({"area": int(unlikely.sum()), "file_name": images.unnamed})
    areas = np.where(columns["stated"] & ~unlikely, areas, own)
    notes = _leave_root_out(categories, set(np.unique(columns["category_id"]).tolist()), with_root)
    names = {category["id"]: category["name"] for category in categories}
    table = make_table(names, images.ids, images.file_names, np.concatenate(images.sizes), image, boxes,
                       columns["category_id"], areas, columns["iscrowd"], facts.facts(categories))
    return Parsed(table, +derived, notes=notes)


class _Images:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.file_names: list[str] = []
        self.unnamed = 0
        self.sizes: list[np.ndarray] = []

    def add(self, part: list[dict[str, Any]]) -> None:
        ids = [entry["id"] for entry in part]
        names: list[Any] = [entry.get("file_name") for entry in part]
        if None in names:
            self.unnamed += names.count(None)
            names = [name_in_url(entry) if name is None else name for name, entry in zip(names, part)]
        sizes = [(entry["width"], entry["height"]) for entry in part]
        _require(_types(ids) <= {int} and _types(chain.from_iterable(sizes)) <= NUMBERS and _types(names) <= {str})
        _require(is_text("".join(names)))
        self.ids += ids
        self.file_names += names
        self.sizes.append(_numbers(sizes, 2))
        _require((self.sizes[-1] > 0).all() and np.isfinite(self.sizes[-1]).all())


class _Annotations:
    def __init__(self) -> None:
        self.parts: list[dict[str, np.ndarray]] = []
        self.derived: Counter[str] = Counter()

    def add(self, part: list[dict[str, Any]]) -> None:
        columns = {name: [entry[name] for entry in part] for name in ("image_id", "category_id", "bbox")}
        areas, crowds = ([entry.get(name, _Absent) for entry in part] for name in ("area", "iscrowd"))
        stated = np.array([area is not _Absent for area in areas], bool)
        absent = len(part) - int(stated.sum()) + crowds.count(_Absent)
        areas = [0 if area is _Absent else area for area in areas]
        crowds = [0 if crowd is _Absent else crowd for crowd in crowds]
        _require(_types(columns["image_id"]) <= {int} and _types(columns["category_id"]) <= {int}
                 and _types(columns["bbox"]) <= {list} and _types(chain.from_iterable(columns["bbox"])) <= NUMBERS
                 and _types(areas) <= NUMBERS and _types(crowds) <= {int} and set(crowds) <= {0, 1})
        self.derived["annotation_id"] += sum(entry.get("id") is None for entry in part)
        self.derived["default"] += absent
        self.parts.append({
            "image_id": np.array(columns["image_id"], np.int64), "bbox": _numbers(columns["bbox"], 4),
            "category_id": np.array(columns["category_id"], np.int64), "area": _numbers(areas, 1)[:, 0],
            "iscrowd": np.array(crowds, bool), "stated": stated})

    def columns(self) -> dict[str, np.ndarray]:
        if not self.parts:
            self.add([])
        return {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}


class _Absent:
    """Stands for a value that is left out."""


def _numbers(values: list, width: int) -> np.ndarray:
    numbers = np.array(values, np.float64).reshape(len(values), width)
    _require(not (np.isfinite(numbers) & (np.abs(numbers) >= LARGEST)).any())
    return numbers


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def _require(condition: Any) -> None:
    if not condition:
        raise _NotPlain
