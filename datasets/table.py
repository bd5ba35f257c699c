"""What a split's annotations say, as arrays: the one form that every layout is read into.

n images and m boxes. Arrays, not objects, because they can be cached in a file, mapped by many processes at once, and
read by a data-loading process without its copying them.
"""
import contextlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
from pycocotools.coco import COCO

from datasets.benchmark_facts import BenchmarkFacts, joined_facts

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """Texts as one array of UTF-8 bytes, and where each of them ends."""

    data: Array  # uint8
    ends: Array  # int64 [n]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        encoded = [text.encode(errors="surrogateescape") for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(bytearray().join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        letters = self.data[self.ends[index - 1] if index else 0:self.ends[index]]
        return letters.tobytes().decode(errors="surrogateescape")

    def take(self, indices: Iterable[int]) -> "Texts":
        return Texts.of(self[i] for i in indices)


@dataclass(frozen=True, eq=False)
class Table:
    """Images by rising id, and their boxes, image by image."""

    names: dict[int, str]  # of the classes, by category id
    ids: Array | Texts  # int64 [n]; where they are no such numbers, as JSON
    file_names: Texts  # [n], within the folder
    folders: Array  # int32 [n], which of the set's folders
    sizes: Array  # float64 [n, 2]: width, height px
    starts: Array  # int64 [n + 1]: boxes starts[i] to starts[i + 1] are those of image i
    boxes: Array  # float64 [m, 4]: x, y, width, height px
    labels: Array  # int32 [m]: category ids
    areas: Array  # float64 [m]: px²
    crowds: Array  # bool [m]
    facts: BenchmarkFacts = field(default_factory=BenchmarkFacts)

    def __len__(self) -> int:
        return len(self.file_names)

    def image_id(self, index: int) -> Any:
        found = self.ids[index]
        return json.loads(found) if isinstance(found, str) else int(found)

    def size(self, index: int) -> tuple[float, float]:
        """Width and height, whole numbers as such."""
        width, height = map(_plain, self.sizes[index].tolist())
        return width, height

    def boxes_of(self, index: int) -> slice:
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def images_of_boxes(self) -> Array:
        """The index of each box's image, [m]."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def take(self, images: Array) -> "Table":
        """Only the images of these rising indices."""
        counts = np.diff(self.starts)[images]
        kept = np.zeros(len(self), bool)
        kept[images] = True
        part = self._with_boxes(kept[self.images_of_boxes()])
        return replace(part, starts=_starts(counts), ids=_taken(self.ids, images),
                       file_names=self.file_names.take(images), folders=self.folders[images], sizes=self.sizes[images],
                       facts=part.facts.moved(_numbers_of(kept), np.arange(len(part.labels))))

    def keep_boxes(self, keep: Array) -> "Table":
        """Only the boxes where keep [m] is True."""
        return replace(self._with_boxes(keep), starts=_starts(np.bincount(self.images_of_boxes()[keep],
                                                                           minlength=len(self))))

    def _with_boxes(self, keep: Array) -> "Table":
        return replace(self, boxes=self.boxes[keep], labels=self.labels[keep], areas=self.areas[keep],
                       crowds=self.crowds[keep],
                       facts=self.facts.moved(np.arange(len(self)), _numbers_of(keep)))

    def content(self) -> dict[str, Any]:
        """The same as a COCO annotation file has it."""
        ids = [self.image_id(i) for i in range(len(self))]
        images = [{"id": image_id, "file_name": name, "width": size[0], "height": size[1]}
                  for image_id, name, size in zip(ids, self.file_names, map(self.size, range(len(self))))]
        columns = zip(self.images_of_boxes().tolist(), self.labels.tolist(), self.boxes.tolist(), self.areas.tolist(),
                      self.crowds.tolist())
        annotations = [{"id": number, "image_id": ids[image], "category_id": label, "bbox": box, "area": area,
                        "iscrowd": int(crowd)} for number, (image, label, box, area, crowd) in enumerate(columns, 1)]
        categories = [{"id": i, "name": name} for i, name in self.names.items()]
        content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        self.facts.add_to(content)
        return content


def make_table(names: dict[int, str], ids: list, file_names: Sequence[str], sizes: Array, images_of_boxes: Array,
               boxes: Array, labels: Array, areas: Array, crowds: Array, facts: BenchmarkFacts | None = None) -> Table:
    """A table of images and boxes in any order, which is also that of the facts; boxes of an image keep theirs.
    images_of_boxes [m]: index in ids."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    by_image = np.argsort(rank[images_of_boxes], kind="stable")
    facts = (facts or BenchmarkFacts()).moved(rank, np.argsort(by_image))
    starts = _starts(np.bincount(rank[images_of_boxes], minlength=len(ids)))
    return Table(names, id_column([ids[i] for i in order]), Texts.of(file_names[i] for i in order),
                 np.zeros(len(ids), np.int32), np.asarray(sizes, np.float64).reshape(-1, 2)[order], starts,
                 np.asarray(boxes, np.float64).reshape(-1, 4)[by_image], np.asarray(labels, np.int32)[by_image],
                 np.asarray(areas, np.float64)[by_image], np.asarray(crowds, bool)[by_image], facts)


def id_column(ids: list) -> Array | Texts:
    if all(type(i) is int and -2**63 <= i < 2**63 for i in ids):
        return np.array(ids, np.int64)
    return Texts.of(json.dumps(i) for i in ids)


def to_coco(content: dict[str, Any]) -> COCO:
    """pycocotools' form of an annotation file's content."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def joined(tables: Sequence[Table], renumbered: Sequence[Array], folders: Sequence[int],
           names: dict[int, str]) -> Table:
    """Several sets as one, with new image ids from 1. For each table, renumbered: the new category ids by the old ones;
    folders: how many it has."""
    def column(name: str) -> Array:
        return np.concatenate([getattr(table, name) for table in tables])

    first = np.cumsum([0, *folders])
    images, boxes = (np.cumsum([0, *counts]) for counts in (map(len, tables), (len(t.labels) for t in tables)))
    facts = joined_facts(t.facts.renumbered(new).moved(np.arange(len(t)) + image, np.arange(len(t.labels)) + box)
                         for t, new, image, box in zip(tables, renumbered, images, boxes))
    return Table(names, np.arange(1, sum(map(len, tables)) + 1), Texts.of(n for t in tables for n in t.file_names),
                 np.concatenate([t.folders + start for t, start in zip(tables, first)]).astype(np.int32),
                 column("sizes"), _starts(np.concatenate([np.diff(table.starts) for table in tables])), column("boxes"),
                 np.concatenate([new[t.labels] for t, new in zip(tables, renumbered)]).astype(np.int32),
                 column("areas"), column("crowds"), facts)


def _starts(counts: Array) -> Array:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _numbers_of(kept: Array) -> Array:
    """The new indices of what is kept, -1 for the rest; kept: bool."""
    return np.where(kept, np.cumsum(kept) - 1, -1)


def _taken(ids: Array | Texts, indices: Array) -> Array | Texts:
    return ids.take(indices) if isinstance(ids, Texts) else ids[indices]


def _plain(number: float) -> float:
    return int(number) if number.is_integer() else number
