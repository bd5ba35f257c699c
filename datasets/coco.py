"""The images of one split with their boxes, as a training and an evaluation see them.

A split may lie in any layout that datasets/formats knows; `coco` is its ground truth as pycocotools has it.
"""
import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision import tv_tensors

from datasets.augmentation import Augmentation
from datasets.boxes import corners
from datasets.data import DetectionData
from datasets.formats.source import content_of
from datasets.images import find_files, note_headers, read_image
from datasets.phases import Sample
from datasets.table import Table, Texts, to_coco
from util.class_names import ClassNames
from util.errors import UserError
from util.nested_tensor import NestedTensor

logger = logging.getLogger(__name__)
HEADERS = 1000  # images of a set whose headers are looked at before any is read


class CocoDetection(Dataset):
    """Images of one split with their boxes.

    Crowd regions are left out; the boxes are those of the split's table, the images those of read_image. A missing or
    broken image raises UserError, except in training without `strict`: there it is skipped with a warning, and the next
    image takes its place.

    In training, a Sample and the seed determine an item, in any worker. An index i is short for its image and
    repetition: beyond the last image, it means the same images again with other augmentations.

    An item is an image, uint8 [3, H, W], and a dict of "boxes" [n, 4] cxcywh in [0, 1], "labels" [n] (category ids),
    "area" [n] and "iscrowd" [n], "image_id", "orig_size" and "size" (height, width), and "skipped" (how many images
    were skipped). Where a training mixes images, id and original size are those of the first.

    transforms: an Augmentation, or any function of image and target. data: the data set, or its path. `table` has the
    images that have a file, `names` the classes by category id, `folder` is the one below which all images lie.
    """

    def __init__(self, data: DetectionData | str | Path, split: str, transforms: Augmentation | Callable,
                 strict: bool = False, seed: int = 0):
        found = (data if isinstance(data, DetectionData) else DetectionData(data)).split(split)
        self.title, self.folders, self.folder = found.source.title, found.source.folders, found.source.folder
        self.names = found.table.names
        for folder in self.folders:
            if not folder.is_dir():
                raise UserError(f"no image folder {folder}")
        self.transforms = transforms
        self.training = split == "train"
        self.strict = strict or not self.training
        self.seed = seed
        self.table = self._with_files(found.table, found.source.annotations)
        every = max(1, len(self) // HEADERS)
        note_headers([(self.path(i), self.table.size(i)) for i in range(0, len(self), every)], self.title)
        self._warn_without_boxes(split)

    def _with_files(self, table: Table, annotations: Path) -> Table:
        """The images that have a file; names become the files' own."""
        names, missing = list(table.file_names), []
        present = np.ones(len(names), bool)
        for number, folder in enumerate(self.folders):
            mine = np.flatnonzero(table.folders == number).tolist()
            files, lacking = find_files(folder, [names[i] for i in mine])
            missing += lacking
            for i in mine:
                present[i] = names[i] in files
                names[i] = files.get(names[i], names[i])
        if missing:
            text = f"{annotations} names {len(missing)} images that {self.folder} lacks, such as {missing[0]}"
            if self.strict:
                raise UserError(text)
            logger.warning("%s; skipped", text)
        if not present.any():
            raise UserError(f"{annotations}: no image to read")
        table = replace(table, file_names=Texts.of(names))
        return table if present.all() else table.take(np.flatnonzero(present))

    @cached_property
    def coco(self) -> COCO:
        """The ground truth, with all crowd regions; file names are those below `folder`."""
        return to_coco(content_of(self.table, self.folders))

    @property
    def ids(self) -> list[Any]:
        """Image ids, in the order of the images."""
        return [self.table.image_id(i) for i in range(len(self))]

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folders[self.table.folders[index]] / self.table.file_names[index]

    def boxes(self, index: int) -> dict[str, Tensor]:
        """Of one image: "boxes" [n, 4] as xyxy px, "labels", "area" and "iscrowd" [n]."""
        part = self.table.boxes_of(index)
        keep = ~self.table.crowds[part]
        boxes = self.table.boxes[part][keep]
        return {"boxes": corners(boxes, np.repeat(self.table.sizes[index:index + 1], len(boxes), 0)),
                "labels": torch.from_numpy(self.table.labels[part][keep].astype(np.int64)),
                "area": torch.from_numpy(self.table.areas[part][keep].astype(np.float32)),
                "iscrowd": torch.zeros(len(boxes), dtype=torch.int64)}

    @property
    def most_boxes(self) -> int:
        """Of an image."""
        return int(np.bincount(self.table.images_of_boxes()[~self.table.crowds], minlength=1).max())

    def _warn_without_boxes(self, split: str) -> None:
        crowds = int(self.table.crowds.sum())
        if split == "test" or len(self.table.crowds) > crowds:
            return
        logger.warning("%s: no box to %s%s", self.title, "learn from" if self.training else "measure AP with",
                       f": its {crowds} annotations are crowd regions (iscrowd=1)" if crowds else "")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int | Sample) -> tuple[Tensor, dict[str, Any]]:
        sample = index if isinstance(index, Sample) else Sample(index % len(self), index // len(self))
        read = Reader(self)
        with self._seeded(sample) if self.training else contextlib.nullcontext():
            if isinstance(self.transforms, Augmentation):
                tensor, target = self.transforms(read, sample.image, sample.progress)
            else:
                tensor, target = self.transforms(*read(sample.image))
        width, height = self.table.size(read.shown[0])
        return tensor, target | {"image_id": self.table.image_id(read.shown[0]),
                                 "orig_size": torch.tensor([height, width]), "skipped": read.skipped}

    @contextlib.contextmanager
    def _seeded(self, sample: Sample) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the GPUs too, which fork_rng does not restore.
            seed = np.random.SeedSequence([self.seed, sample.repetition, sample.image]).generate_state(1)[0]
            torch.default_generator.manual_seed(int(seed))
            yield

    def open_from(self, index: int, within: tuple[int, int] | None = None) -> tuple[Image.Image, int, int]:
        """The image at index, or the next one that can be read: (image, its index, how many were skipped). within: see
        read_image."""
        worker = get_worker_info()
        for skipped in range(len(self)):
            position = (index + skipped) % len(self)
            if worker is not None:
                self.reading[worker.id] = torch.tensor([os.getpid(), position])
            try:
                return read_image(self.path(position), self.table.size(position), within), position, skipped
            except UserError as error:
                if self.strict:
                    raise
                logger.warning("%s; skipped", error)
        raise UserError(f"{self.folder}: no image can be read")

    def watch_workers(self, num_workers: int) -> None:
        """To be called before a loader starts `num_workers` processes, which record in shared memory what they read."""
        self.reading = torch.zeros(num_workers, 2, dtype=torch.int64).share_memory_()  # process id, index

    def being_read(self, crash: str) -> list[Path]:
        """The images last opened by the data-loading processes whose ids the error text contains."""
        dead = {int(digits) for digits in re.findall(r"\d+", crash)}
        return [self.path(position) for process, position in self.reading.tolist() if process in dead]


class Reader:
    """Reads the images of one item with their targets, as datasets/mixing.py asks for them. Remembers in `shown` which
    images it gave, and in `skipped` how many it passed over."""

    def __init__(self, dataset: CocoDetection):
        self.dataset = dataset
        self.shown: list[int] = []
        self.skipped = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, index: int) -> tuple[int, int]:
        width, height = self.dataset.table.size(index)
        return int(width), int(height)

    def __call__(self, index: int, within: tuple[int, int] | None = None) -> tuple[Image.Image, dict[str, Any]]:
        image, shown, skipped = self.dataset.open_from(index, within)
        self.shown.append(shown)
        self.skipped += skipped
        target: dict[str, Any] = self.dataset.boxes(shown)
        if within is not None:
            across, down = (side / whole for side, whole in zip(image.size, self.size(shown)))
            target["boxes"] = target["boxes"] * torch.tensor([across, down, across, down])
            target["area"] = target["area"] * (across * down)
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.size[::-1])
        return image, target


def read_annotations(data: DetectionData | str | Path, split: str) -> COCO:
    """The ground truth of a split as training and evaluation use it; see datasets/formats/parsed.py. The images are not
    looked at."""
    found = (data if isinstance(data, DetectionData) else DetectionData(data)).split(split)
    return to_coco(content_of(found.table, found.source.folders))


def class_names(coco: COCO) -> ClassNames:
    """Category id to name."""
    return {category["id"]: category["name"] for category in coco.dataset["categories"]}


def check_num_classes(num_classes: int, names: ClassNames, source: str, advice: str = "or 'auto'") -> None:
    """Raises UserError if a category id is not among the classes 0 .. num_classes - 1. `advice` follows the number
    that would do."""
    largest = max(names)
    if num_classes <= largest:
        raise UserError(f"num_classes={num_classes}, but {source} has the category id {largest} ({names[largest]!r}): "
                        f"set num_classes to {largest + 1} {advice}")


def collate(samples: list[tuple[Tensor, dict]], multiple: int = 1) -> tuple[NestedTensor, list[dict]]:
    """One padded batch, whose height and width are multiples of `multiple` px."""
    images, targets = zip(*samples)
    return NestedTensor.from_list(list(images), multiple), list(targets)
