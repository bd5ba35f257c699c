"""COCO-format detection data.

A folder holds train2017/, val2017/ and annotations/instances_{train,val}2017.json; test sets are test2017/ with
annotations/image_info_test-dev2017.json.
"""
import contextlib
import io
import json
import logging
import os
import re
from collections import Counter
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


class CocoDetection(Dataset):
    """Images of one split with their boxes.

    Crowd regions are left out; boxes are clipped to the image, and those that are empty or not finite are dropped and
    counted in the log. A missing or broken image raises UserError, except in training without `strict`: there it is
    skipped with a warning, and the next image takes its place.

    In training, an index beyond the last image means the same images once more with other augmentations: sample i and
    sample i + len(self) show one image. The seed and the index always give the same sample, in any worker.

    An item is an image [3, H, W] and a dict of "boxes" [n, 4] cxcywh in [0, 1], "labels" [n] (category ids), "area" [n]
    and "iscrowd" [n], "image_id", "orig_size" and "size" (height, width), and "skipped" (images passed over).
    """

    def __init__(self, root: str | Path, split: str, transforms: torch.nn.Module, strict: bool = False, seed: int = 0):
        folder, annotations = SPLITS[split]
        self.folder = Path(root) / folder
        self.coco = read_annotations(root, split)
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
            # File names may hold folders: look at those again, one by one.
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
        boxes, dropped = {}, 0
        for image_id in self.ids:
            anns = [a for a in self.coco.imgToAnns[image_id] if not a["iscrowd"]]
            xywh = torch.tensor([a["bbox"] for a in anns], dtype=torch.float32).reshape(-1, 4)
            good = (xywh.isfinite().all(1)) & (xywh[:, 2:] > 0).all(1)
            corners = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
            size = torch.tensor([self.coco.imgs[image_id][side] for side in ("width", "height")] * 2)
            corners = torch.minimum(corners.clamp(min=0), size)
            good &= (corners[:, 2:] > corners[:, :2]).all(1)
            dropped += int((~good).sum())
            area = torch.tensor([float(a["area"]) for a in anns])
            boxes[image_id] = {"boxes": corners[good], "labels": torch.tensor([a["category_id"] for a in anns],
                                                                              dtype=torch.int64)[good],
                               "area": area[good], "iscrowd": torch.zeros(int(good.sum()), dtype=torch.int64)}
        if dropped:
            logger.warning("%s: dropped %d boxes that are empty, outside their image or not finite",
                           self.folder.name, dropped)
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
        """Before a loader starts that many processes: they will note what they read in shared memory."""
        self.reading = torch.zeros(num_workers, 2, dtype=torch.int64).share_memory_()  # process id, place in ids

    def being_read(self, crash: str) -> list[Path]:
        """The images last opened by the data-loading processes whose ids the text contains."""
        dead = {int(number) for number in re.findall(r"\d+", crash)}
        return [self._path(self.ids[place]) for process, place in self.reading.tolist() if process in dead]

    def _path(self, image_id: int) -> Path:
        return self.folder / self.coco.imgs[image_id]["file_name"]


def read_annotations(root: str | Path, split: str) -> COCO:
    """The annotation file of a split, checked: UserError names the file and what is wrong with it."""
    root = Path(root)
    path = root / SPLITS[split][1]
    if not root.is_dir():
        raise UserError(f"--coco_path: no folder {root}")
    if not path.is_file():
        raise UserError(f"no annotation file {path}; a COCO folder holds "
                        f"{', '.join(SPLITS['train'] + SPLITS['val'])}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    _check_annotations(content, path)
    content.setdefault("info", {})  # pycocotools reads these without asking
    for number, annotation in enumerate(content.setdefault("annotations", []), 1):
        annotation["id"] = number  # pycocotools needs them unique, and takes a match with 0 for none
        annotation.pop("segmentation", None)  # most of the file, and of no use here
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def class_names(coco: COCO) -> dict[int, str]:
    """Category id to name."""
    return {category["id"]: category["name"] for category in coco.dataset["categories"]}


def check_num_classes(num_classes: int, coco: COCO, source: str) -> None:
    """Raises UserError if a category id has no place among the classes 0 .. num_classes - 1."""
    largest = max(class_names(coco))
    if num_classes <= largest:
        raise UserError(f"num_classes={num_classes}, but {source} has the category id {largest}: set num_classes to "
                        f"{largest + 1} or 'auto'")


def collate(samples: list[tuple[Tensor, dict]]) -> tuple[NestedTensor, list[dict]]:
    """One padded batch."""
    images, targets = zip(*samples)
    return NestedTensor.from_list(list(images)), list(targets)


def _check_annotations(content: Any, path: Path) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO file, it holds a {type(content).__name__}")
    for name in ("images", "categories"):
        if not content.get(name):
            raise UserError(f"{path}: no {name!r}, or an empty list of them")
    needs = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name"),
             "annotations": ("id", "image_id", "category_id", "bbox")}
    for name, keys in needs.items():
        entries = content.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{path}: {name!r} must be a list of objects")
        for entry in entries:
            absent = [k for k in keys if k not in entry]
            if absent:
                raise UserError(f"{path}: an entry of {name!r} (id {entry.get('id')}) has no {absent[0]!r}")
    categories = {category["id"] for category in content["categories"]}
    if not all(isinstance(i, int) and i >= 0 for i in categories):
        raise UserError(f"{path}: category ids must be integers from 0, got {sorted(categories, key=str)[:5]}")
    images = Counter(image["id"] for image in content["images"])
    twice = [i for i, count in images.items() if count > 1]
    if twice:
        raise UserError(f"{path}: 'images' has {len(twice)} ids more than once, such as id {twice[0]}")
    for annotation in content.get("annotations", []):
        where = f"{path}: annotation {annotation['id']}"
        if annotation["category_id"] not in categories:
            raise UserError(f"{where} has category_id {annotation['category_id']}, which 'categories' does not list")
        if annotation["image_id"] not in images:
            raise UserError(f"{where} has image_id {annotation['image_id']}, which 'images' does not list")
        box = annotation["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(x, (int, float)) for x in box):
            raise UserError(f"{where}: bbox must be four numbers [x, y, width, height], got {box!r}")
