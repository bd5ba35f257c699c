"""What is wrong with a data set: every problem, with its image and annotation.

A training (datasets/formats/parsed.py) stops at the first problem that it cannot ignore, and drops others with a
count. Where both check the same thing, they share the code.
"""
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.annotations import (
    DERIVED,
    Problem,
    box_columns,
    doubtful_boxes,
    entry_problems,
    has_size,
    usable_annotations,
)
from datasets.boxes import ROUNDING, faults, reaching_over
from datasets.data import DetectionData
from datasets.images import find_files, orientation_of, to_rgb, upright_size
from util.cpu import available_cpus
from util.errors import UserError

BOTH = ("train", "val")


@dataclass(frozen=True)
class Kind:
    """A kind of problem. `stops`: the splits in which it keeps a training from starting or going on. `remedy`: what
    datasets/inspection/repair.py does about it, if anything."""

    meaning: str
    stops: tuple[str, ...] = ()
    remedy: str | None = None


KINDS = {
    "incomplete": Kind("entries that lack a key or have a wrong type in it", BOTH, "left out"),
    "no_size": Kind("images without a width and height above 0", BOTH, "taken from the file"),
    "repeated_image_id": Kind("images with the id of another", BOTH, "one kept where the file is the same, else all "
                                                                     "with that id left out"),
    "unknown_category": Kind("annotations of a category that is not listed", BOTH, "left out"),
    "unknown_image": Kind("annotations of an image that is not listed", BOTH, "left out"),
    "not_a_box": Kind("annotations whose bbox or area is not made of numbers", BOTH, "left out"),
    "not_a_crowd": Kind("annotations whose iscrowd is neither 0 nor 1", BOTH, "left out"),
    "large_category_id": Kind("categories whose id is too large", BOTH, "all categories renumbered from 1"),
    "repeated_annotation_id": Kind("annotations with the id of another", remedy="renumbered"),
    "missing": Kind("images without a file", ("val",), "left out with their boxes"),
    "unreadable": Kind("images that cannot be read", ("val",), "left out with their boxes"),
    "other_size": Kind("images whose size differs from the annotations", ("val",), "size taken from the file; look "
                                                                                    "whether the boxes fit"),
    "stored": Kind("images that are annotated with their size before their EXIF orientation turns them, so that "
                   "training, unlike tools/detect.py, sees them unturned",
                   remedy="size and boxes turned, masks left out; look whether they fit"),
    "orientation": Kind("images with an EXIF orientation, which training follows: look whether the boxes do"),
    "not_rgb": Kind("images that are not RGB, which training converts"),
    "deep": Kind("images of more than 8 bits per channel, each scaled to 8 bits from its own range"),
    "repeated_file": Kind("images with the same content as another"),
    "unlisted": Kind("files that the annotations do not list", remedy="not copied"),
    "not_finite": Kind("boxes with a value that is not finite", remedy="left out"),
    "empty": Kind("boxes of zero or negative width or height", remedy="left out"),
    "outside": Kind("boxes entirely outside their image", remedy="left out"),
    "clipped": Kind("boxes that extend beyond their image, which training and evaluation cut", remedy="cut"),
    "repeated_box": Kind("boxes that repeat one of the same class", remedy="one kept"),
    "bad_line": Kind("lines and objects that are none of their layout", BOTH, "left out"),
    "per_cent": Kind("sets of boxes in per cent of the image, not in parts of it", BOTH, "divided by 100"),
    "repeated_name": Kind("images of one name, so that it is unknown which of them is annotated", BOTH, "left out"),
    "no_labels": Kind("images without an annotation file, which training takes for images without objects",
                      remedy="written without boxes"),
    "no_image": Kind("label files without an image", remedy="left out"),
    "from_0": Kind("files with boxes from pixel 0, where Pascal VOC counts from 1: if all of them count from 0, boxes "
                   "are 1 px off"),
    "tiny": Kind("boxes with a side below 1 px"),
    "whole_image": Kind("boxes that cover the whole image"),
} | {kind: Kind(meaning, remedy="written so") for kind, meaning in DERIVED.items() if kind != "default"}
# Entries that are not read further.
USELESS = {"incomplete", "repeated_image_id", "unknown_category", "unknown_image", "not_a_box", "not_a_crowd"}


@dataclass(frozen=True)
class ImageFile:
    """What a file holds: (width, height) before it is turned upright, PIL's mode, EXIF orientation 1 to 8, and a hash
    of its bytes."""

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = 1
    digest: str = ""
    error: str = ""

    @property
    def upright_size(self) -> tuple[int, int]:
        return upright_size(self.size, self.orientation)


@dataclass
class SplitInspection:
    """images, paths and files by image id; a path or file is None if it is missing; file names are those below
    `folder`. The boxes are those that training uses, cut at the border: `box_image` [n] image ids, `box_label` [n],
    `box_sides` [n, 2] (width, height) px, `box_area` [n] px².
    """

    split: str
    folder: Path
    content: dict[str, Any]
    problems: list[Problem]
    doubt: str | None = None  # what the boxes seem to be, if not COCO's
    images: dict[Any, dict] = field(default_factory=dict)
    paths: dict[Any, Path | None] = field(default_factory=dict)
    files: dict[Any, ImageFile | None] = field(default_factory=dict)
    crowds: int = 0
    box_image: list = field(default_factory=list)
    box_label: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    box_sides: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    box_area: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def class_names(self) -> dict[int, str]:
        return {category["id"]: str(category["name"]) for category in self.content["categories"]}

    def by_kind(self) -> dict[str, list[Problem]]:
        """The problems in the order of KINDS."""
        return {kind: found for kind in KINDS if (found := [p for p in self.problems if p.kind == kind])}

    def stops(self) -> bool:
        """Whether a training with this split would not run."""
        usable = any(file is not None and not file.error for file in self.files.values())
        return not usable or any(self.split in KINDS[problem.kind].stops for problem in self.problems)


def inspect_split(data: DetectionData | str | Path, split: str, progress: bool = False) -> SplitInspection:
    """Reads the annotations and every image of a split. data: the data set, or its path. Raises UserError if they are
    missing."""
    source = (data if isinstance(data, DetectionData) else DetectionData(data)).source(split)
    content, found = source.content()
    for folder in source.folders:
        if not folder.is_dir():
            raise UserError(f"no image folder {folder}")
    folder = source.folder
    result = SplitInspection(split, folder, content, list(entry_problems(content)))
    result.problems += [problem for problem in found if problem.kind in KINDS]
    useless = {id(problem.entry) for problem in result.problems if problem.kind in USELESS}
    result.images = {image["id"]: image for image in content["images"] if id(image) not in useless}
    names = [image["file_name"] for image in result.images.values()]
    files = find_files(folder, names)[0]
    result.paths = {i: folder / files[image["file_name"]] if image["file_name"] in files else None
                    for i, image in result.images.items()}
    result.files = _read_files(result.paths, folder.name, progress)
    result.problems += file_problems(result)
    if source.exclusive:
        result.problems += _unlisted_files(result, besides=source.annotations)
    annotations = [a for a in content["annotations"] if id(a) not in useless]
    result.problems += _repeated_annotation_ids(annotations)
    sized = {i: image | _stated_size(image, result.files[i]) for i, image in result.images.items()}
    annotations = [a for a in annotations if sized[a["image_id"]]["width"]]
    result.problems += box_problems(sized, annotations)
    result.doubt = doubtful_boxes(sized, annotations)
    _gather_boxes(result, sized, annotations)
    return result


def inspect_file(path: Path | None) -> ImageFile | None:
    """What the file holds; None if there is none."""
    if path is None:
        return None
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as image:
            found = (image.size, image.mode, orientation_of(image))
            to_rgb(image)  # reads all pixels
        return ImageFile(*found, digest=hashlib.sha1(data, usedforsecurity=False).hexdigest())
    except Exception as error:  # PIL raises many kinds of errors for broken files
        return ImageFile(error=str(error) or type(error).__name__)


def _read_files(paths: dict[Any, Path | None], title: str, progress: bool) -> dict[Any, ImageFile | None]:
    with ThreadPoolExecutor(min(8, available_cpus())) as pool:  # PIL decodes without Python's lock
        found = pool.map(inspect_file, paths.values())
        found = tqdm(found, title, len(paths), unit="image", disable=not progress, leave=False)
        return dict(zip(paths, found))


def _stated_size(image: dict, file: ImageFile | None) -> dict[str, float]:
    """Width and height as annotated, else those of the file's upright picture, else 0."""
    if has_size(image):
        return {"width": image["width"], "height": image["height"]}
    width, height = file.upright_size if file is not None else (0, 0)
    return {"width": width, "height": height}


def file_problems(inspection: SplitInspection) -> Iterator[Problem]:
    """Problems of the image files of a split."""
    images, files = inspection.images, inspection.files
    seen: dict[str, str] = {}
    for image_id, image in images.items():
        name, file = image["file_name"], files[image_id]
        stated = tuple(_stated_size(image, file).values())
        if file is None:
            yield Problem("missing", f"{name}", image)
            continue
        if file.error:
            yield Problem("unreadable", f"{name}: {file.error}", image)
            continue
        upright = file.upright_size
        sizes = f"the file has {upright[0]}x{upright[1]} px, the annotations say {stated[0]}x{stated[1]}"
        if stated == file.size != upright:
            yield Problem("stored", f"{name}: {sizes}", image)
        elif stated != upright:
            yield Problem("other_size", f"{name}: {sizes}", image)
        elif file.orientation != 1 and upright == file.size:  # the size does not tell whether boxes were turned
            yield Problem("orientation", f"{name}: orientation {file.orientation}", image)
        if file.mode[0] in "IF":
            yield Problem("deep", f"{name}: {file.mode}", image)
        elif file.mode != "RGB":
            yield Problem("not_rgb", f"{name}: {file.mode}", image)
        if file.digest in seen:
            yield Problem("repeated_file", f"{name} is {seen[file.digest]}", image)
        seen.setdefault(file.digest, name)


def _unlisted_files(inspection: SplitInspection, besides: Path) -> Iterator[Problem]:
    """Files of the folder that are neither images of the split nor `besides`."""
    listed = {os.path.normpath(path) for path in (*inspection.paths.values(), besides) if path is not None}
    for path in sorted(path for path in inspection.folder.rglob("*") if path.is_file()):
        if os.path.normpath(path) not in listed:
            yield Problem("unlisted", os.fsencode(path.relative_to(inspection.folder)).decode(errors="replace"), {})


def _repeated_annotation_ids(annotations: list[dict]) -> Iterator[Problem]:
    seen = set()
    for annotation in annotations:
        key = str(annotation["id"])
        if key in seen:
            yield Problem("repeated_annotation_id", f"annotation {key}", annotation)
        seen.add(key)


def _by_image(annotations: list[dict]) -> dict[Any, list[dict]]:
    grouped = defaultdict(list)
    for annotation in annotations:
        grouped[annotation["image_id"]].append(annotation)
    return grouped


def box_problems(images: dict[Any, dict], annotations: list[dict]) -> Iterator[Problem]:
    """Problems of the boxes of annotations that entry_problems passed; images by id, with "width" and "height"."""
    for image_id, group in _by_image(annotations).items():
        image, seen = images[image_id], set()
        width, height = image["width"], image["height"]
        boxes, sizes = box_columns(images, group)
        useless, over = faults(boxes, sizes), reaching_over(boxes, sizes)
        for i, annotation in enumerate(group):
            *_, w, h = box = annotation["bbox"]
            context = f"{image['file_name']}, annotation {annotation['id']}: {box}"
            fault = next((kind for kind, found in useless.items() if found[i]), None)
            key = (annotation["category_id"], annotation["iscrowd"], *box)
            if fault is not None:
                yield Problem(fault, f"{context} in {width}x{height} px", annotation)
                continue
            if over[i]:
                yield Problem("clipped", f"{context} in {width}x{height} px", annotation)
            elif w >= width - ROUNDING and h >= height - ROUNDING:
                yield Problem("whole_image", context, annotation)
            if min(w, h) < 1:
                yield Problem("tiny", context, annotation)
            if key in seen:
                yield Problem("repeated_box", context, annotation)
            seen.add(key)


def _gather_boxes(result: SplitInspection, images: dict[Any, dict], annotations: list[dict]) -> None:
    """Fills in the boxes that training uses."""
    result.crowds = sum(a["iscrowd"] for a in annotations)
    boxes, _ = usable_annotations(images, [a for a in annotations if not a["iscrowd"]])
    if boxes:
        result.box_image = [a["image_id"] for a in boxes]
        result.box_label = np.array([a["category_id"] for a in boxes])
        result.box_sides = np.array([a["bbox"][2:] for a in boxes], float)
        result.box_area = np.array([a["area"] for a in boxes], float)
