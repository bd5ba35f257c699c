"""What is wrong with a COCO-format folder: every problem, with its image and annotation.

datasets/coco.py stops at the first problem that it cannot ignore, and drops others with a count. Where both check the
same thing, they share the code.
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
import torch
from PIL import Image
from tqdm import tqdm

from datasets.coco import SPLITS, Problem, clip_boxes, entry_problems, has_size, read_content
from util.cpu import available_cpus
from util.errors import UserError

ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap width and height
ROUNDING = 0.1  # px by which a box may extend beyond its image unnoticed
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
    "repeated_annotation_id": Kind("annotations with the id of another", remedy="renumbered"),
    "missing": Kind("images without a file", ("val",), "left out with their boxes"),
    "unreadable": Kind("images that cannot be read", ("val",), "left out with their boxes"),
    "other_size": Kind("images whose size differs from the annotations", ("val",), "size taken from the file; look "
                                                                                    "whether the boxes fit"),
    "turned": Kind("images that are annotated as their EXIF orientation shows them", ("val",), "pixels turned"),
    "orientation": Kind("images with an EXIF orientation, which training does not apply"),
    "not_rgb": Kind("images that are not RGB, which training converts"),
    "deep": Kind("images of more than 8 bits per channel, of which training sees little"),
    "repeated_file": Kind("images with the same content as another"),
    "unlisted": Kind("files that the annotations do not list", remedy="not copied"),
    "not_finite": Kind("boxes with a value that is not finite", remedy="left out"),
    "empty": Kind("boxes of zero or negative width or height", remedy="left out"),
    "outside": Kind("boxes entirely outside their image", remedy="left out"),
    "clipped": Kind("boxes that extend beyond their image, which training cuts", remedy="cut"),
    "repeated_box": Kind("boxes that repeat one of the same class", remedy="one kept"),
    "tiny": Kind("boxes with a side below 1 px"),
    "whole_image": Kind("boxes that cover the whole image"),
    "area": Kind("areas of 0 or less, or more than a tenth above that of their box", remedy="set to the box's"),
}
# Entries that are not read further.
USELESS = {"incomplete", "repeated_image_id", "unknown_category", "unknown_image", "not_a_box", "not_a_crowd"}


@dataclass(frozen=True)
class ImageFile:
    """What a file holds: (width, height) as stored, PIL's mode, EXIF orientation 1 to 8, and a hash of its bytes."""

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = 1
    digest: str = ""
    error: str = ""


@dataclass
class SplitInspection:
    """images and files by image id; a file is None if it is missing. The boxes are those that training uses, cut at the
    border: `box_image` [n] image ids, `box_label` [n], `box_sides` [n, 2] (width, height) px, `box_area` [n] px².
    """

    split: str
    folder: Path
    content: dict[str, Any]
    problems: list[Problem]
    images: dict[Any, dict] = field(default_factory=dict)
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


def inspect_split(root: str | Path, split: str, progress: bool = False) -> SplitInspection:
    """Reads the annotations and every image of a split. Raises UserError if they are missing."""
    content = read_content(root, split)
    folder = Path(root) / SPLITS[split][0]
    if not folder.is_dir():
        raise UserError(f"no image folder {folder}")
    result = SplitInspection(split, folder, content, list(entry_problems(content)))
    useless = {id(problem.entry) for problem in result.problems if problem.kind in USELESS}
    result.images = {image["id"]: image for image in content["images"] if id(image) not in useless}
    result.files = _read_files(folder, result.images, progress)
    result.problems += file_problems(result.images, result.files, folder)
    annotations = [a for a in content.get("annotations", []) if id(a) not in useless]
    result.problems += _repeated_annotation_ids(annotations)
    sized = {i: image | _stated_size(image, result.files[i]) for i, image in result.images.items()}
    annotations = [a for a in annotations if sized[a["image_id"]]["width"]]
    result.problems += box_problems(sized, annotations)
    _gather_boxes(result, sized, annotations)
    return result


def inspect_file(path: Path) -> ImageFile | None:
    """What the file holds; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data)) as image:
            found = (image.size, image.mode, image.getexif().get(ORIENTATION, 1))
            image.convert("RGB")  # reads all pixels
        return ImageFile(*found, digest=hashlib.sha1(data, usedforsecurity=False).hexdigest())
    except Exception as error:  # PIL raises many kinds of errors for broken files
        return ImageFile(error=str(error) or type(error).__name__)


def _read_files(folder: Path, images: dict[Any, dict], progress: bool) -> dict[Any, ImageFile | None]:
    with ThreadPoolExecutor(min(8, available_cpus())) as pool:  # PIL decodes without Python's lock
        found = pool.map(inspect_file, [folder / image["file_name"] for image in images.values()])
        found = tqdm(found, folder.name, len(images), unit="image", disable=not progress, leave=False)
        return dict(zip(images, found))


def _stated_size(image: dict, file: ImageFile | None) -> dict[str, float]:
    """Width and height as annotated, else the file's, else 0."""
    if has_size(image):
        return {"width": image["width"], "height": image["height"]}
    width, height = file.size if file is not None else (0, 0)
    return {"width": width, "height": height}


def file_problems(images: dict[Any, dict], files: dict[Any, ImageFile | None], folder: Path) -> Iterator[Problem]:
    """Problems of the image files of a split; images and files by image id."""
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
        sizes = f"the file has {file.size[0]}x{file.size[1]} px, the annotations say {stated[0]}x{stated[1]}"
        turned = file.orientation >= 5 and stated == file.size[::-1] != file.size
        if turned:
            yield Problem("turned", f"{name}: {sizes}", image)
        elif stated != file.size:
            yield Problem("other_size", f"{name}: {sizes}", image)
        if file.orientation != 1 and not turned:
            yield Problem("orientation", f"{name}: orientation {file.orientation}", image)
        if file.mode[0] in "IF":
            yield Problem("deep", f"{name}: {file.mode}", image)
        elif file.mode != "RGB":
            yield Problem("not_rgb", f"{name}: {file.mode}", image)
        if file.digest in seen:
            yield Problem("repeated_file", f"{name} is {seen[file.digest]}", image)
        seen.setdefault(file.digest, name)
    listed = {os.path.normpath(image["file_name"]) for image in images.values()}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if str(path.relative_to(folder)) not in listed:
            yield Problem("unlisted", str(path.relative_to(folder)), {})


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
        _, found_faults = clip_boxes(_xywh(group), width, height)
        faults = {kind: found.tolist() for kind, found in found_faults.items()}
        for i, annotation in enumerate(group):
            x, y, w, h = box = annotation["bbox"]
            context = f"{image['file_name']}, annotation {annotation['id']}: {box}"
            fault = next((kind for kind, found in faults.items() if found[i]), None)
            key = (annotation["category_id"], annotation.get("iscrowd", 0), *box)
            if fault is not None:
                yield Problem(fault, f"{context} in {width}x{height} px", annotation)
                continue
            if min(x, y) < -ROUNDING or x + w > width + ROUNDING or y + h > height + ROUNDING:
                yield Problem("clipped", f"{context} in {width}x{height} px", annotation)
            elif w >= width - ROUNDING and h >= height - ROUNDING:
                yield Problem("whole_image", context, annotation)
            if min(w, h) < 1:
                yield Problem("tiny", context, annotation)
            if not 0 < annotation.get("area", w * h) <= 1.1 * w * h + 1:
                yield Problem("area", f"{context}, area {annotation['area']}", annotation)
            if key in seen:
                yield Problem("repeated_box", context, annotation)
            seen.add(key)


def _xywh(annotations: list[dict]) -> torch.Tensor:
    """[n, 4], in the precision of the training."""
    return torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)


def _gather_boxes(result: SplitInspection, images: dict[Any, dict], annotations: list[dict]) -> None:
    """Fills in the boxes that training uses."""
    result.crowds = sum(bool(a.get("iscrowd", 0)) for a in annotations)
    labels, sides, areas = [], [], []
    for image_id, group in _by_image([a for a in annotations if not a.get("iscrowd", 0)]).items():
        corners, faults = clip_boxes(_xywh(group), images[image_id]["width"], images[image_id]["height"])
        bad = torch.stack(list(faults.values())).any(0).tolist()
        for a, box, is_bad in zip(group, corners.tolist(), bad):
            if not is_bad:
                result.box_image.append(image_id)
                labels.append(a["category_id"])
                sides.append((box[2] - box[0], box[3] - box[1]))
                areas.append(a.get("area", a["bbox"][2] * a["bbox"][3]))
    if labels:
        result.box_label, result.box_sides, result.box_area = np.array(labels), np.array(sides), np.array(areas)
