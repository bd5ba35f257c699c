"""YOLO's layout: data.yaml, and beside each image a text file with lines `class cx cy w h`, in parts of the image.

A line may also hold a corner list (`class x y x y x y ...`: the box around it), or end with a confidence or keypoints.
"""
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations import Problem
from datasets.formats.listing import header_size, is_image, meant, of_one_name, read_text
from datasets.formats.parsed import Parsed
from datasets.formats.source import Source
from datasets.images import spelling
from datasets.table import make_table
from util.class_names import ClassNames
from util.errors import UserError

CLASSES = "classes.txt"  # among label files: a name a line
REACH = 0.5  # parts of the image by which a centre may lie outside; more is no fraction


class YoloSource(Source):
    """images: the files. names: the classes by their index in the label files; category ids are one more.
    labels: the folder of the label files, if they are not where YOLO looks for them. keypoints: how many numbers
    follow each box."""

    def __init__(self, title: str, described: Path, folder: Path, images: Sequence[Path], names: Sequence[str],
                 labels: Path | None = None, keypoints: int = 0):
        super().__init__(title, described, [folder])
        self.images, self.classes, self.labels, self.keypoints = list(images), list(names), labels, keypoints

    def names(self) -> ClassNames:
        return dict(enumerate(self.classes, 1))

    def files(self) -> Iterable[Path]:
        yield self.annotations
        labels = self.label_files()
        for image in self.images:
            yield image
            yield labels[image]

    def parts(self) -> Iterable[Any]:
        return [*super().parts(), *self.classes, self.labels, self.keypoints]

    def label_files(self) -> dict[Path, Path]:
        """By image: its file, also where accents or upper and lower case are written otherwise, or where it would
        be."""
        wanted, folders = {image: self.label_file(image) for image in self.images}, defaultdict(list)
        for path in wanted.values():
            folders[path.parent].append(path.name)
        names = {folder: meant(asked, _names_in(folder)) for folder, asked in folders.items()}
        return {image: path.with_name(names[path.parent].get(path.name, path.name)) for image, path in wanted.items()}

    def without_image(self, labels: Mapping[Path, Path]) -> list[Problem]:
        """Label files beside those of the images, for which the folder of images has none, listed or not."""
        pairs = {(image.parent, label.parent) for image, label in labels.items()}
        images = {(parent, spelling(name)) for parent, label_folder in pairs
                  for name in (os.path.splitext(name)[0] for name in _names_in(parent) if is_image(name))}
        listed = {*labels.values()}
        return [Problem("no_image", f"{folder / name}", {}) for parent, folder in sorted(pairs)
                for name in sorted(_names_in(folder)) if name.endswith(".txt") and name != CLASSES
                and folder / name not in listed and (parent, spelling(name.removesuffix(".txt"))) not in images]

    def label_file(self, image: Path) -> Path:
        if self.labels is not None:
            return (self.labels / image.relative_to(self.folders[0])).with_suffix(".txt")
        return label_file(image)

    def read(self) -> Parsed:
        images, problems = of_one_name(self.images)
        lines, labels = _Lines(len(self.classes), self.annotations, self.keypoints), self.label_files()
        for index, image in enumerate(images):
            path = labels[image]
            try:
                text = read_text(path)
            except FileNotFoundError:
                problems.append(Problem("no_labels", f"{image}: no {path}", {}))
            except UserError as error:
                problems.append(Problem("bad_line", str(error), {}))
            else:
                lines.add(index, path, text)
        if self.needs_labels and images and sum(problem.kind == "no_labels" for problem in problems) == len(images):
            raise UserError(f"{self.annotations}: none of the {len(images)} images of {self.folder} has a label file, "
                            f"such as {labels[images[0]]}")
        problems += self.without_image(labels)
        if not images and not problems:
            raise UserError(f"{self.annotations}: no images in {self.folder}")
        sizes = np.array([header_size(image) for image in images], np.float64).reshape(-1, 2)
        boxes, kept = lines.finish()
        readable = sizes[np.array(lines.images, np.int64)[kept]].prod(1) > 1  # else there is no place for a box
        boxes, kept = boxes[readable], kept[readable]
        of_image = np.array(lines.images, np.int64)[kept]
        scale = sizes[of_image]
        pixels = np.concatenate([(boxes[:, :2] - boxes[:, 2:] / 2) * scale, boxes[:, 2:] * scale], 1)
        table = make_table(self.names(), list(range(1, len(images) + 1)),
                           [image.relative_to(self.folders[0]).as_posix() for image in images], sizes, of_image, pixels,
                           np.array(lines.labels, np.int64)[kept] + 1, pixels[:, 2] * pixels[:, 3],
                           np.zeros(len(pixels), bool))
        return Parsed(table, lines.derived, problems + lines.problems)


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def label_file(image: Path) -> Path:
    """The last folder `images` of the path becomes `labels`; without one, the label file is beside the image."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


class _Lines:
    """The lines of all label files: for each that is kept, image, class, box (cx, cy, w, h) and where it stands."""

    def __init__(self, classes: int, described: Path, keypoints: int = 0):
        self.classes, self.described, self.keypoints = classes, described, keypoints
        self.images: list[int] = []
        self.labels: list[int] = []
        self.boxes: list[list[float]] = []
        self.places: list[tuple[Path, int]] = []
        self.problems: list[Problem] = []
        self.derived: Counter[str] = Counter()

    def add(self, image: int, path: Path, text: str) -> None:
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            try:
                label, box = float(words[0]), self._box([float(word) for word in words[1:]])
            except ValueError as error:
                self._problem("bad_line", path, number, str(error))
                continue
            if label not in range(self.classes):
                self._problem("unknown_category", path, number, f"the class {words[0]}, but {self.described} has "
                                                                f"{self.classes}, from 0")
                continue
            self.images.append(image)
            self.labels.append(int(label))
            self.boxes.append(box)
            self.places.append((path, number))

    def _box(self, numbers: list[float]) -> list[float]:
        if self.keypoints and len(numbers) == 4 + self.keypoints:
            self.derived["keypoints"] += 1
        elif len(numbers) == 5:
            self.derived["confidence"] += 1
        elif len(numbers) >= 6 and len(numbers) % 2 == 0:
            self.derived["outline"] += 1
            (left, right), (top, bottom) = ((min(part), max(part)) for part in (numbers[::2], numbers[1::2]))
            return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        elif len(numbers) != 4:
            raise ValueError(f"{len(numbers)} numbers after the class, not 4 (cx cy w h)")
        return numbers[:4]

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The boxes [n, 4] that can be used, and which lines they are [n]."""
        boxes = np.array(self.boxes, np.float64).reshape(-1, 4)
        largest = np.abs(boxes).max(1, initial=0)
        if len(boxes) and ((largest > 1 + REACH) & (largest <= 101)).mean() >= 0.95:
            path, number = self.places[0]
            self.problems.append(Problem("per_cent", f"{path}, line {number}: {boxes[0].tolist()} and nearly all "
                                                     "others are per cent of the image, not parts of it (0 to 1)", {}))
            boxes, largest = boxes / 100, largest / 100
        sound = (largest <= 1 + REACH) & (boxes[:, :2] >= -REACH).all(1)  # False for what is not finite
        for index in np.flatnonzero(~sound).tolist():
            self._problem("bad_line", *self.places[index], f"{self.boxes[index]} are no parts of the image (0 to 1)")
        return boxes[sound], np.flatnonzero(sound)

    def _problem(self, kind: str, path: Path, number: int, text: str) -> None:
        self.problems.append(Problem(kind, f"{path}, line {number}: {text}", {}))
