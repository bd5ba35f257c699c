"""Several sets as one, and parts of a set."""
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import Problem, is_text
from datasets.formats.parsed import Parsed, alike
from datasets.formats.source import Source, name_below
from datasets.table import Table, joined
from util.class_names import ClassNames, comparable
from util.errors import UserError


class Joined(Source):
    """Several sets at once: images are numbered anew, and classes of one name are one. every: the sources of all
    splits, whose classes are the same then; classes: those."""

    def __init__(self, title: str, sources: Sequence[Source], every: Sequence[Source],
                 classes: Callable[[], ClassNames]):
        folders = [folder for source in sources for folder in source.folders]
        super().__init__(title, sources[0].annotations, folders)
        self.sources, self.every = list(sources), list(every)
        self.names = classes  # type: ignore[method-assign]

    def read(self) -> Parsed:
        parsed, names = [source.read() for source in self.sources], self.names()
        ids = {comparable(name): i for i, name in names.items()}
        tables = [part.table for part in parsed]
        return Parsed(joined(tables, [_renumbering(table, ids) for table in tables],
                             [len(source.folders) for source in self.sources], names),
                      sum((part.derived for part in parsed), start=type(parsed[0].derived)()),
                      [problem for part in parsed for problem in part.problems],
                      [note for part in parsed for note in part.notes]
                      + [(logging.WARNING, f"{source.title}: {text}: taken for one") for source, table
                         in zip(self.sources, tables) for text in alike(table.names)])

    def content(self) -> tuple[dict[str, Any], list[Problem]]:
        names, problems = self.names(), []
        ids = {comparable(name): i for i, name in names.items()}
        joint: dict[str, Any] = {"info": {}, "images": [], "annotations": [],
                                 "categories": [{"id": i, "name": name} for i, name in names.items()]}
        for source in self.sources:
            content, found = source.content()
            _renumber(content, source.annotations, ids, len(joint["images"]))
            for image in content["images"]:
                if is_text(image.get("file_name")):
                    image["file_name"] = name_below(self.folder, source.folder, image["file_name"])
            joint["images"] += content["images"]
            joint["annotations"] += content["annotations"]
            problems += found
        return joint, problems

    def files(self) -> Iterable[Path]:
        for source in self.every:
            yield from source.files()

    def parts(self) -> Iterable[Any]:
        return [*super().parts(), *(part for source in (*self.sources, *self.every) for part in source.parts())]


class Share(Source):
    """A part of another split's images."""

    def __init__(self, title: str, whole: Source, fraction: float, seed: int, rest: bool):
        super().__init__(title, whole.annotations, whole.folders)
        self.whole, self.fraction, self.seed, self.rest = whole, fraction, seed, rest
        self.names, self.files = whole.names, whole.files  # type: ignore[method-assign]

    def read(self) -> Parsed:
        parsed = self.whole.read()
        images = self._chosen(parsed.table.file_names)
        return Parsed(parsed.table.take(images), parsed.derived, parsed.problems, parsed.notes)

    def content(self) -> tuple[dict[str, Any], list[Problem]]:
        content, problems = self.whole.content()
        images = content["images"]
        chosen = self._chosen([str(image.get("file_name")) for image in images])
        others = [images[i] for i in np.setdiff1d(np.arange(len(images)), chosen)]
        their_ids = {str(image.get("id")) for image in others}
        their = [a for a in content["annotations"] if str(a.get("image_id")) in their_ids]
        left_out = {id(entry) for entry in (*others, *their)}
        kept = {name: [entry for entry in content[name] if id(entry) not in left_out]
                for name in ("images", "annotations")}
        return content | kept, [problem for problem in problems if id(problem.entry) not in left_out]

    def _chosen(self, file_names: Sequence[str]) -> np.ndarray:
        if len(file_names) < 2:
            raise UserError(f"{self.annotations}: one image cannot be split into a train and a val set")
        images = share(file_names, self.fraction, self.seed)
        return np.setdiff1d(np.arange(len(file_names)), images) if self.rest else images

    def parts(self) -> Iterable[Any]:
        return [*self.whole.parts(), self.fraction, self.seed, self.rest]


def share(file_names: Iterable[str], fraction: float, seed: int) -> np.ndarray:
    """The rising indices of a random part of the images, at least one and not all. Each image has a place of its own in
    the draw, by the seed and its file's name: it does not depend on the layout, and hardly on what other images there
    are, so that a resumed training does not learn its val images when some are added."""
    last = [name.replace("\\", "/").rpartition("/")[2] for name in file_names]
    places = [hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in last]
    count = min(max(1, round(fraction * len(places))), len(places) - 1)
    return np.sort(np.array(sorted(range(len(places)), key=places.__getitem__)[:count], np.int64))


def merged_names(sources: Iterable[Source]) -> ClassNames:
    """The classes of all sources by name; each has the id of the first that has it, or the next free one."""
    merged: ClassNames = {}
    known: set[str] = set()
    for source in sources:
        for i, name in sorted(source.names().items()):
            if comparable(name) not in known:
                known.add(comparable(name))
                merged[i if i not in merged else max(merged) + 1] = name
    return merged


def _renumber(content: dict[str, Any], source: Path, ids: Mapping[str, int], before: int) -> None:
    """Gives a content other image ids, from before + 1, and the category ids of the names. Annotations are told apart
    by their file, and so is what they name that is not there."""
    images: dict[str, int] = {}
    for image in content["images"]:
        if "id" in image:
            image["id"] = images.setdefault(str(image["id"]), before + len(images) + 1)
    classes = {str(category["id"]): ids[comparable(category["name"])] for category in content["categories"]}
    for annotation in content["annotations"]:
        annotation["id"] = f"{annotation['id']} of {source}"
        for name, numbers in (("image_id", images), ("category_id", classes)):
            if name in annotation:
                annotation[name] = numbers.get(str(annotation[name]), f"{annotation[name]} of {source}")


def _renumbering(table: Table, ids: Mapping[str, int]) -> np.ndarray:
    """New category ids [largest + 1] by the old ones."""
    numbers = np.zeros(max(table.names) + 1, np.int32)
    for old, name in table.names.items():
        numbers[old] = ids[comparable(name)]
    return numbers
