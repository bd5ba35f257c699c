"""One split of a data set: where it lies, and what every reader offers."""
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import Problem
from datasets.formats.parsed import Parsed
from datasets.table import Table, joined
from util.class_names import ClassNames, comparable
from util.errors import UserError


class Source:
    """What the images and the annotations of a split are read from. A layout has a subclass with `read`, `names` and
    `files`.

    title: what the log calls it. annotations: what errors name. folders: of the images; Table.folders are indices in
    them. exclusive: whether all images in the folders belong to this split.
    """

    exclusive = False

    def __init__(self, title: str, annotations: Path, folders: Sequence[Path]):
        self.title, self.annotations, self.folders = title, annotations, list(folders)

    def read(self) -> Parsed:
        """Raises UserError if what is there is not of this layout at all."""
        raise NotImplementedError

    def names(self) -> ClassNames:
        """Of the classes, by category id."""
        raise NotImplementedError

    def files(self) -> Iterable[Path]:
        """What `read` depends on."""
        raise NotImplementedError

    def parts(self) -> Iterable[Any]:
        """What else `read` depends on, as text."""
        return [type(self).__name__, self.annotations, *self.folders]

    def content(self) -> tuple[dict[str, Any], list[Problem]]:
        """For an inspection: the same as the content of a COCO file, as it is written, and what was found in reading
        it. File names are those below `folder`."""
        parsed = self.read()
        return content_of(parsed.table, self.folders), parsed.problems

    @property
    def folder(self) -> Path:
        """The one below which all images lie."""
        return common_folder(self.folders)

    def state(self) -> tuple[str, int, int]:
        """A checksum that changes with whatever is read, the bytes of the files, and their number."""
        digest, size, count = hashlib.sha256(repr([str(part) for part in self.parts()]).encode()), 0, 0
        for path in self.files():
            try:
                found = os.stat(path)
            except OSError:
                digest.update(f"no {os.fspath(path)}\n".encode(errors="replace"))
                continue
            digest.update(f"{os.fspath(path)}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="replace"))
            size, count = size + found.st_size, count + 1
        return digest.hexdigest(), size, count


@dataclass(frozen=True)
class Layout:
    """A data set whose layout is known. holds: in words, where that layout has its splits."""

    name: str
    root: Path
    sources: Mapping[str, Source]  # by split: "train", "val", "test"
    holds: str


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
                      [note for part in parsed for note in part.notes])

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
        if len(parsed.table) < 2:
            raise UserError(f"{self.annotations}: one image cannot be split into a train and a val set")
        images = share(parsed.table.file_names, self.fraction, self.seed)
        if self.rest:
            images = np.setdiff1d(np.arange(len(parsed.table)), images)
        return Parsed(parsed.table.take(images), parsed.derived, parsed.problems, parsed.notes)

    def parts(self) -> Iterable[Any]:
        return [*self.whole.parts(), self.fraction, self.seed, self.rest]


def common_folder(folders: Sequence[Path]) -> Path:
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([os.path.abspath(path) for path in folders]))


def content_of(table: Table, folders: Sequence[Path]) -> dict[str, Any]:
    """The same as a COCO annotation file has it, with file names below the common folder."""
    content, common = table.content(), common_folder(folders)
    if len(folders) > 1:
        for image, folder in zip(content["images"], table.folders.tolist()):
            image["file_name"] = os.path.relpath(folders[folder] / image["file_name"], common)
    return content


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


def _renumbering(table: Table, ids: Mapping[str, int]) -> np.ndarray:
    """New category ids [largest + 1] by the old ones."""
    numbers = np.zeros(max(table.names) + 1, np.int32)
    for old, name in table.names.items():
        numbers[old] = ids[comparable(name)]
    return numbers
