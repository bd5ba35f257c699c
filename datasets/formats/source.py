"""One split of a data set: where it lies, and what every reader offers."""
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.annotations import Problem
from datasets.formats.parsed import Parsed
from datasets.images import inside
from datasets.table import Table
from util.class_names import ClassNames


class Source:
    """What the images and the annotations of a split are read from. A layout has a subclass with `read`, `names` and
    `files`.

    title: what the log calls it. annotations: what errors name. folders: of the images; Table.folders are indices in
    them. exclusive: whether all images in the folders belong to this split.
    """

    exclusive = False
    needs_labels = True  # False: an image set to detect in may have none

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

    def __post_init__(self) -> None:
        if "test" in self.sources:
            self.sources["test"].needs_labels = False


def common_folder(folders: Sequence[Path]) -> Path:
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([os.path.abspath(path) for path in folders]))


def content_of(table: Table, folders: Sequence[Path]) -> dict[str, Any]:
    """The same as a COCO annotation file has it, with file names below the common folder."""
    content, common = table.content(), common_folder(folders)
    if len(folders) > 1:
        for image, folder in zip(content["images"], table.folders.tolist()):
            image["file_name"] = name_below(common, folders[folder], image["file_name"])
    return content


def name_below(common: Path, folder: Path, name: str) -> str:
    """The file name below the common folder. Raises UserError if it leads outside its own."""
    return os.path.relpath(inside(folder, name.replace("\\", "/")), common)
