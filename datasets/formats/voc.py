"""Pascal VOC's layout: Annotations/NAME.xml, JPEGImages/NAME.jpg, and ImageSets/Main/SPLIT.txt with the names.

A box is from pixel xmin to pixel xmax, both in it, counted from 1 (Everingham et al., IJCV 2010); objects that are
marked as difficult are crowd regions: neither learned nor counted.
"""
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import Problem
from datasets.formats.listing import is_image, meant, read_text
from datasets.formats.parsed import Parsed
from datasets.formats.source import Layout, Source
from datasets.formats.voc_file import VocBoxes, classes_in
from datasets.table import make_table
from util.class_names import ClassNames
from util.errors import UserError

SPLIT_FILES = {"train": ("train.txt", "trainval.txt", "default.txt"), "val": ("val.txt",), "test": ("test.txt",)}
HOLDS = ", ".join(f"ImageSets/Main/{names[0]}" for names in SPLIT_FILES.values())


class VocSource(Source):
    """list_file: the names of the images; None: those of all files in `annotations`. The classes are those of all
    files in `annotations`, of every split, sorted by name: category ids from 1."""

    def __init__(self, title: str, annotations: Path, images: Path, list_file: Path | None):
        super().__init__(title, annotations, [images])
        self.list_file = list_file

    def names(self) -> ClassNames:
        return dict(enumerate(sorted(set().union(*map(classes_in, xml_files(self.annotations)))), 1))

    def files(self) -> Iterable[Path]:
        if self.list_file:
            yield self.list_file
        yield from xml_files(self.annotations)
        yield from sorted(self.folders[0].iterdir())

    def parts(self) -> Iterable[Any]:
        return [*super().parts(), self.list_file]

    def read(self) -> Parsed:
        names = self.names()
        images, problems = self._images(self._stems())
        xml = meant((f"{stem}.xml" for stem, _ in images), (path.name for path in xml_files(self.annotations)))
        reading = VocBoxes({name: i for i, name in names.items()}, problems)
        for index, (stem, image) in enumerate(images):
            file = f"{stem}.xml"
            reading.add(index, self.annotations / xml.get(file, file), self.folders[0] / image)
        if self.needs_labels and images and sum(problem.kind == "no_labels" for problem in problems) == len(images):
            raise UserError(f"{self.annotations}: none of the {len(images)} images of {self.title} has a file there")
        boxes = np.array(reading.boxes, np.float64).reshape(-1, 4)
        table = make_table(names, list(range(1, len(images) + 1)), [image for _, image in images],
                           np.array(reading.sizes, np.float64), np.array(reading.images, np.int64), boxes,
                           np.array(reading.labels, np.int64), boxes[:, 2] * boxes[:, 3],
                           np.array(reading.difficult, bool))
        return Parsed(table, problems=problems)

    def _stems(self) -> list[str]:
        """The sorted names of the images."""
        known = [path.stem for path in xml_files(self.annotations)]
        return known if self.list_file is None else _listed(self.list_file, set(known))

    def _images(self, stems: Sequence[str]) -> tuple[list[tuple[str, str]], list[Problem]]:
        """The file of each name; .jpg where there is none."""
        files = defaultdict(list)
        for path in sorted(self.folders[0].iterdir()):
            if is_image(path.name):
                files[path.stem].append(path.name)
        found = {stem: files[name] for stem, name in meant(stems, files).items()}
        problems = [Problem("repeated_name", f"{' and '.join(names)} in {self.folders[0]} are images of one name, and "
                                             "it is unknown which of them the annotations are about", {})
                    for stem in stems if len(names := found.get(stem, [])) > 1]
        return [(stem, names[0]) for stem in stems if len(names := found.get(stem, [f"{stem}.jpg"])) == 1], problems


def voc(root: Path) -> Layout | None:
    annotations = root / "Annotations"
    if not annotations.is_dir():
        return None
    images = root / "JPEGImages"
    if not images.is_dir():
        raise UserError(f"no image folder {images}. If the images lie elsewhere, --options train_images=FOLDER "
                        f"train_annotations={annotations} names both")
    sets = root / "ImageSets" / "Main"
    files = {split: next((sets / name for name in names if (sets / name).is_file()), None)
             for split, names in SPLIT_FILES.items()}
    if not any(files.values()):
        if others := sorted(path.name for path in sets.glob("*.txt")):
            raise UserError(f"{sets} has {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}, but none of "
                            f"{', '.join(name for names in SPLIT_FILES.values() for name in names)}: write train.txt "
                            "and val.txt, with the name of an image in each line")
        return Layout("Pascal VOC", root, {"train": VocSource(root.name, annotations, images, None)}, HOLDS)
    sources = {split: VocSource(f"{root.name} {split}", annotations, images, path)
               for split, path in files.items() if path is not None}
    return Layout("Pascal VOC", root, sources, HOLDS)


def xml_files(folder: Path) -> list[Path]:
    """Sorted by name, without hidden ones."""
    return sorted((path for path in folder.glob("*.xml") if not path.name.startswith(".")), key=lambda path: path.stem)


def _listed(list_file: Path, known: set[str]) -> list[str]:
    """The sorted names of a list. A line may end with -1, 0 or 1 after the name, unless all of it is a known one."""
    names = set()
    for number, line in enumerate(read_text(list_file).splitlines(), 1):
        name = line.strip() if line.strip() in known else re.sub(r"\s+(-1|0|1)$", "", line.strip())
        if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
            raise UserError(f"{list_file}, line {number}: {name!r} is no name of an image in JPEGImages")
        if name:
            names.add(name)
    if not names:
        raise UserError(f"{list_file}: no image is listed")
    return sorted(names)
