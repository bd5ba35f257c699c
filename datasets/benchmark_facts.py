"""What the annotation files of LVIS and CrowdHuman say beside boxes, for the metrics of these data sets."""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import flag_of
from util.errors import UserError

NEGATIVE, NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"
# The box of what is visible of a person, as converters of CrowdHuman and CityPersons name it.
VISIBLE = frozenset({"vbox", "bbox_vis", "vis_bbox", "vis_box", "visible_bbox", "bbox_visible"})
HAS_VISIBLE = "has_visible_boxes"  # in the "info" of a table's content: annotations had one of VISIBLE

Array = np.ndarray


def _no_pairs() -> Array:
    return np.zeros((0, 2), np.int64)


@dataclass(frozen=True, eq=False)
class BenchmarkFacts:
    """Of a table; empty for other files than those of LVIS and CrowdHuman. Images and boxes are indices."""

    frequencies: dict[int, str] = field(default_factory=dict)  # LVIS's "r", "c" or "f" by category id
    has_class_lists: bool = False  # whether images have one of the following two, even an empty one
    negative: Array = field(default_factory=_no_pairs)  # int64 [k, 2] (image, category id) known not to be there
    not_exhaustive: Array = field(default_factory=_no_pairs)  # int64 [k, 2] (image, category id) with more than is said
    has_visible: bool = False  # whether the boxes of what is visible are there
    ignored: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # [k] boxes that need not be found

    def moved(self, images: Array, boxes: Array) -> "BenchmarkFacts":
        """After images and boxes moved: their new indices by the old ones, -1 for what is left out."""
        def pairs(values: Array) -> Array:
            image = images[values[:, 0]]
            return np.column_stack([image, values[:, 1]])[image >= 0]

        ignored = boxes[self.ignored]
        return replace(self, negative=pairs(self.negative), not_exhaustive=pairs(self.not_exhaustive),
                       ignored=ignored[ignored >= 0])

    def renumbered(self, categories: Array) -> "BenchmarkFacts":
        """categories: the new ids by the old ones."""
        def pairs(values: Array) -> Array:
            return np.column_stack([values[:, 0], categories[values[:, 1]]])

        return replace(self, frequencies={int(categories[i]): letter for i, letter in self.frequencies.items()},
                       negative=pairs(self.negative), not_exhaustive=pairs(self.not_exhaustive))

    def add_to(self, content: dict[str, Any]) -> None:
        """To the content of a COCO file, where the files of LVIS and CrowdHuman have it."""
        for category in content["categories"]:
            if category["id"] in self.frequencies:
                category["frequency"] = self.frequencies[category["id"]]
        if self.has_class_lists:
            for image in content["images"]:
                image |= {NEGATIVE: [], NOT_EXHAUSTIVE: []}
            for name, pairs in ((NEGATIVE, self.negative), (NOT_EXHAUSTIVE, self.not_exhaustive)):
                for image, category in pairs.tolist():
                    content["images"][image][name].append(category)
        for box in self.ignored.tolist():
            content["annotations"][box]["ignore"] = 1
        if self.has_visible:
            content["info"][HAS_VISIBLE] = True


def joined_facts(facts: Iterable[BenchmarkFacts]) -> BenchmarkFacts:
    """Those of several tables whose images, boxes and categories are already numbered as in the common one."""
    facts = list(facts)

    def column(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in facts])

    return BenchmarkFacts({i: letter for part in reversed(facts) for i, letter in part.frequencies.items()},
                          any(part.has_class_lists for part in facts), column("negative"), column("not_exhaustive"),
                          any(part.has_visible for part in facts), column("ignored"))


class FactReader:
    """Gathers the facts from the entries of an annotation file, in the order of the file. Raises UserError for values
    that mean nothing."""

    def __init__(self, path: Path):
        self.path, self.images, self.boxes = path, 0, 0
        self.has_class_lists = self.has_visible = False
        self.pairs: dict[str, list[tuple[int, int]]] = {NEGATIVE: [], NOT_EXHAUSTIVE: []}
        self.ignored: list[int] = []

    def add_info(self, info: Any) -> None:
        """A set that was written from a table says so here."""
        self.has_visible = self.has_visible or isinstance(info, dict) and info.get(HAS_VISIBLE) is True

    def add_images(self, entries: Sequence[dict[str, Any]]) -> None:
        for name, pairs in self.pairs.items():
            for number, entry in enumerate(entries, self.images):
                if name in entry:
                    self.has_class_lists = True
                    pairs += [(number, category) for category in self._class_list(entry, name)]
        self.images += len(entries)

    def add_annotations(self, entries: Sequence[dict[str, Any]]) -> None:
        self.ignored += [number for number, entry in enumerate(entries, self.boxes)
                         if entry.get("ignore", 0) != 0 and self._is_ignored(entry)]
        self.has_visible = self.has_visible or not all(map(VISIBLE.isdisjoint, entries))
        self.boxes += len(entries)

    def facts(self, categories: Iterable[dict[str, Any]]) -> BenchmarkFacts:
        """categories: those that are used; what images say of others means nothing."""
        frequencies = {category["id"]: str(category["frequency"]) if "frequency" in category else None
                       for category in categories}

        def known(name: str) -> Array:
            return np.array([pair for pair in self.pairs[name] if pair[1] in frequencies], np.int64).reshape(-1, 2)

        return BenchmarkFacts({i: letter for i, letter in frequencies.items() if letter is not None},
                              self.has_class_lists, known(NEGATIVE), known(NOT_EXHAUSTIVE), self.has_visible,
                              np.array(self.ignored, np.int64))

    def _class_list(self, image: dict[str, Any], name: str) -> list[int]:
        found = image[name]
        if not isinstance(found, list) or not all(type(category) is int for category in found):
            raise UserError(f"{self.path}: image {image.get('id')!r}: {name} must be a list of category ids, got "
                            f"{found!r}")
        return found

    def _is_ignored(self, annotation: dict[str, Any]) -> bool:
        flag = flag_of(annotation["ignore"])
        if flag is None:
            raise UserError(f"{self.path}: annotation {annotation.get('id')!r}: ignore must be 0 or 1, got "
                            f"{annotation['ignore']!r}")
        return bool(flag)
