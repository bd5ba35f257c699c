"""COCO-format detection data.

A folder holds train2017/, val2017/ and annotations/instances_{train,val}2017.json; test sets are test2017/ with
annotations/image_info_test-dev2017.json.
"""
import contextlib
import io
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision import tv_tensors

from util.errors import UserError
from util.nested_tensor import NestedTensor

logger = logging.getLogger(__name__)

SPLITS = {  # split: image folder, annotation file
    "train": ("train2017", "annotations/instances_train2017.json"),
    "val": ("val2017", "annotations/instances_val2017.json"),
    "test": ("test2017", "annotations/image_info_test-dev2017.json"),
}


class CocoFolder:
    """A data folder, of which each annotation file is read and checked once."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self._annotations: dict[str, COCO] = {}

    def annotations(self, split: str) -> COCO:
        """See read_annotations."""
        if split not in self._annotations:
            self._annotations[split] = read_annotations(self.root, split)
        return self._annotations[split]

    def dataset(self, split: str, transforms: torch.nn.Module, strict: bool = False, seed: int = 0) -> "CocoDetection":
        return CocoDetection(self.root, split, transforms, strict, seed, coco=self.annotations(split))


class CocoDetection(Dataset):
    """Images of one split with their boxes.

    Crowd regions are left out; boxes are clipped to the image, and those that are empty or not finite are dropped and
    counted in the log. A missing or broken image raises UserError, except in training without `strict`: there it is
    skipped with a warning, and the next image takes its place.

    In training, an index beyond the last image means the same images again with other augmentations: sample i and
    sample i + len(self) show the same image. Seed and index determine the sample, in any worker.

    An item is an image [3, H, W] and a dict of "boxes" [n, 4] cxcywh in [0, 1], "labels" [n] (category ids), "area" [n]
    and "iscrowd" [n], "image_id", "orig_size" and "size" (height, width), and "skipped" (how many images were skipped).

    coco: the split's annotation file, if it was read before.
    """

    def __init__(self, root: str | Path, split: str, transforms: torch.nn.Module, strict: bool = False, seed: int = 0,
                 coco: COCO | None = None):
        folder, annotations = SPLITS[split]
        self.folder = Path(root) / folder
        self.coco = read_annotations(root, split) if coco is None else coco
        if not self.folder.is_dir():
            raise UserError(f"no image folder {self.folder}")
        self.transforms = transforms
        self.training = split == "train"
        self.strict = strict or not self.training
        self.seed = seed
        self.ids = self._present(sorted(self.coco.getImgIds()), Path(root) / annotations)
        self.boxes = self._read_boxes()

    def _present(self, ids: list[int], annotations: Path) -> list[int]:
        files = {path.name for path in self.folder.iterdir()}
        missing = [i for i in ids if self.coco.imgs[i]["file_name"] not in files]
        if missing:
            # File names may contain folders.
            missing = [i for i in missing if not self._path(i).is_file()]
        if missing:
            text = (f"{annotations} names {len(missing)} images that {self.folder} lacks, such as "
                    f"{self.coco.imgs[missing[0]]['file_name']}")
            if self.strict:
                raise UserError(text)
            logger.warning("%s; skipped", text)
        kept = sorted(set(ids) - set(missing))
        if not kept:
            raise UserError(f"{annotations}: no image to read")
        return kept

    def _read_boxes(self) -> dict[int, dict[str, Tensor]]:
        """Usable boxes of every image, as xyxy in pixels."""
        boxes: dict[int, dict[str, Tensor]] = {}
        dropped: set[int] = set()
        for image_id in self.ids:
            anns = [a for a in self.coco.imgToAnns[image_id] if not a["iscrowd"]]
            xywh = torch.tensor([a["bbox"] for a in anns], dtype=torch.float32).reshape(-1, 4)
            info = self.coco.imgs[image_id]
            corners, faults = clip_boxes(xywh, info["width"], info["height"])
            usable = ~torch.stack(list(faults.values())).any(0)
            dropped.update(a["id"] for a, keep in zip(anns, usable.tolist()) if not keep)
            area = torch.tensor([float(a["area"]) for a in anns])
            labels = torch.tensor([a["category_id"] for a in anns], dtype=torch.int64)
            boxes[image_id] = {"boxes": corners[usable], "labels": labels[usable], "area": area[usable],
                               "iscrowd": torch.zeros(int(usable.sum()), dtype=torch.int64)}
        if dropped:
            logger.warning("%s: dropped %d boxes that are empty, outside their image or not finite",
                           self.folder.name, len(dropped))
            # Nothing can find them: they do not count in the evaluation either.
            self.coco.dataset["annotations"] = [a for a in self.coco.dataset["annotations"] if a["id"] not in dropped]
            _index(self.coco)
        return boxes

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        repetition, index = divmod(index, len(self))
        image, image_id, skipped = self._open_from(index)
        width, height = image.size
        target = dict(self.boxes[image_id])
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(height, width))
        if self.training:
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed would seed the GPUs too, which fork_rng does not restore.
                seed = np.random.SeedSequence([self.seed, repetition, index]).generate_state(1)[0]
                torch.default_generator.manual_seed(int(seed))
                tensor, target = self.transforms(image, target)
        else:
            tensor, target = self.transforms(image, target)
        return tensor, target | {"image_id": image_id, "orig_size": torch.tensor([height, width]), "skipped": skipped}

    def _open_from(self, index: int) -> tuple[Image.Image, int, int]:
        """The image at index, or the next one that can be read: (image, its id, how many were skipped)."""
        worker = get_worker_info()
        for skipped in range(len(self.ids)):
            position = (index + skipped) % len(self.ids)
            if worker is not None:
                self.reading[worker.id] = torch.tensor([os.getpid(), position])
            image_id = self.ids[position]
            try:
                with Image.open(self._path(image_id)) as file:
                    image = file.convert("RGB")
                info = self.coco.imgs[image_id]
                if image.size != (info["width"], info["height"]):
                    raise ValueError(f"it is {image.size[0]}x{image.size[1]} px, the annotations say "
                                     f"{info['width']}x{info['height']}")
                return image, image_id, skipped
            except Exception as error:  # PIL raises many kinds for broken files
                text = f"cannot use the image {self._path(image_id)}: {error}"
                if self.strict:
                    raise UserError(text) from error
                logger.warning("%s; skipped", text)
        raise UserError(f"{self.folder}: no image can be read")

    def watch_workers(self, num_workers: int) -> None:
        """To be called before a loader starts `num_workers` processes, which record in shared memory what they read."""
        self.reading = torch.zeros(num_workers, 2, dtype=torch.int64).share_memory_()  # process id, position in ids

    def being_read(self, crash: str) -> list[Path]:
        """The images last opened by the data-loading processes whose ids the error text contains."""
        dead = {int(digits) for digits in re.findall(r"\d+", crash)}
        return [self._path(self.ids[position]) for process, position in self.reading.tolist() if process in dead]

    def _path(self, image_id: int) -> Path:
        return self.folder / self.coco.imgs[image_id]["file_name"]


def read_annotations(root: str | Path, split: str) -> COCO:
    """The annotation file of a split, checked: UserError names the file and what is wrong with it."""
    content = read_content(root, split)
    for problem in entry_problems(content):
        raise UserError(f"{Path(root) / SPLITS[split][1]}: {problem.text}")
    content.setdefault("info", {})  # pycocotools requires it
    for number, annotation in enumerate(content.setdefault("annotations", []), 1):
        annotation["id"] = number  # pycocotools needs unique ids above 0
        annotation.pop("segmentation", None)  # most of the file, and unused
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
    coco = COCO()
    coco.dataset = content
    _index(coco)
    return coco


def _index(coco: COCO) -> None:
    """Builds the look-up tables by id."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()


def read_content(root: str | Path, split: str) -> dict[str, Any]:
    """The annotation file of a split, unchanged. Raises UserError if it is missing or not a COCO file; individual
    images and annotations are not checked."""
    root = Path(root)
    path = root / SPLITS[split][1]
    if not root.is_dir():
        raise UserError(f"--coco_path: no folder {root}")
    if not path.is_file():
        raise UserError(f"no annotation file {path}; a COCO folder holds "
                        f"{', '.join(SPLITS['train'] + SPLITS['val'])}")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # with or without a byte-order mark
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    _check_structure(content, path)
    return content


@dataclass(frozen=True)
class Problem:
    """Something wrong with one image or annotation: `kind` names the check, `entry` is the image or annotation."""

    kind: str
    text: str
    entry: dict[str, Any]


def has_size(image: dict[str, Any]) -> bool:
    """Whether an image's entry has a valid width and height."""
    return all(_is_number(image.get(side)) and 0 < image[side] < math.inf for side in ("width", "height"))


def entry_problems(content: dict[str, Any]) -> Iterator[Problem]:
    """What makes single images and annotations unusable without a look at the pixels."""
    seen = set()
    for image in content["images"]:
        absent = [k for k in ("id", "file_name", "height", "width") if k not in image]
        if absent:
            kind = "no_size" if {"id", "file_name"} <= image.keys() else "incomplete"
            yield Problem(kind, f"an entry of 'images' (id {image.get('id')}) has no {absent[0]!r}", image)
        elif not has_size(image):
            yield Problem("no_size", f"image {image['id']} has the width {image['width']!r} and the height "
                                     f"{image['height']!r}: they must be numbers above 0", image)
        if not {"id", "file_name"} <= image.keys():
            continue
        if not isinstance(image["id"], (int, str)) or not isinstance(image["file_name"], str):
            yield Problem("incomplete", f"an image has the id {image['id']!r} and the file_name "
                                        f"{image['file_name']!r}: they must be a number and a text", image)
        elif image["id"] in seen:
            yield Problem("repeated_image_id", f"'images' has the id {image['id']} more than once", image)
        else:
            seen.add(image["id"])
    categories = [category["id"] for category in content["categories"]]
    for annotation in content.get("annotations", []):
        absent = [k for k in ("id", "image_id", "category_id", "bbox") if k not in annotation]
        if absent:
            yield Problem("incomplete", f"an entry of 'annotations' (id {annotation.get('id')}) has no {absent[0]!r}",
                          annotation)
            continue
        where, box = f"annotation {annotation['id']}", annotation["bbox"]
        if annotation["category_id"] not in categories:
            yield Problem("unknown_category", f"{where} has category_id {annotation['category_id']!r}, which "
                                              "'categories' does not list", annotation)
        elif not isinstance(annotation["image_id"], (int, str)) or annotation["image_id"] not in seen:
            yield Problem("unknown_image", f"{where} has image_id {annotation['image_id']!r}, which 'images' does not "
                                           "list", annotation)
        elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            yield Problem("not_a_box", f"{where}: bbox must be four numbers [x, y, width, height], got {box!r}",
                          annotation)
        elif not _is_number(annotation.get("area", 0)):
            yield Problem("not_a_box", f"{where}: area must be a number, got {annotation['area']!r}", annotation)
        elif annotation.get("iscrowd", 0) not in (0, 1):
            yield Problem("not_a_crowd", f"{where}: iscrowd must be 0 or 1, got {annotation['iscrowd']!r}", annotation)


def clip_boxes(xywh: Tensor, width: float, height: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Boxes [n, 4] clipped to their image, as xyxy px, and per fault which of the boxes [n] have it."""
    corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    corners = torch.minimum(corners.clamp(min=0), torch.tensor([width, height] * 2))
    not_finite = ~xywh.isfinite().all(1)
    empty = ~not_finite & ~(xywh[:, 2:] > 0).all(1)
    outside = ~not_finite & ~empty & ~(corners[:, 2:] > corners[:, :2]).all(1)
    return corners, {"not_finite": not_finite, "empty": empty, "outside": outside}


def class_names(coco: COCO) -> dict[int, str]:
    """Category id to name."""
    return {category["id"]: category["name"] for category in coco.dataset["categories"]}


def check_num_classes(num_classes: int, coco: COCO, source: str, advice: str = "or 'auto'") -> None:
    """Raises UserError if a category id is not among the classes 0 .. num_classes - 1. `advice` follows the number
    that would do."""
    names = class_names(coco)
    largest = max(names)
    if num_classes <= largest:
        raise UserError(f"num_classes={num_classes}, but {source} has the category id {largest} ({names[largest]!r}): "
                        f"set num_classes to {largest + 1} {advice}")


def collate(samples: list[tuple[Tensor, dict]], multiple: int = 1) -> tuple[NestedTensor, list[dict]]:
    """One padded batch, whose height and width are multiples of `multiple` px."""
    images, targets = zip(*samples)
    return NestedTensor.from_list(list(images), multiple), list(targets)


def _check_structure(content: Any, path: Path) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file, it holds a {type(content).__name__}")
    for name in ("images", "categories"):
        if not content.get(name):
            raise UserError(f"{path}: no {name!r}, or an empty list of them")
    for name in ("images", "categories", "annotations"):
        entries = content.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: {name!r} must be a list of objects")
    for category in content["categories"]:
        absent = [k for k in ("id", "name") if k not in category]
        if absent:
            raise UserError(f"{path}: an entry of 'categories' (id {category.get('id')}) has no {absent[0]!r}")
    categories = [category["id"] for category in content["categories"]]
    if not all(isinstance(i, int) and i >= 0 for i in categories):
        raise UserError(f"{path}: category ids must be integers from 0, got {sorted(categories, key=str)[:5]}")
    repeated = sorted({i for i in categories if categories.count(i) > 1})
    if repeated:
        raise UserError(f"{path}: 'categories' has the id {repeated[0]} more than once")
    for category in content["categories"]:
        if not isinstance(category["name"], str) or not category["name"].strip():
            raise UserError(f"{path}: the category {category['id']} has the name {category['name']!r}: it must be text")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
