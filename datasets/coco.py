"""COCO-format detection data.

A folder holds train2017/, val2017/ and annotations/instances_{train,val}2017.json; test sets are test2017/ with
annotations/image_info_test-dev2017.json.
"""
import contextlib
import io
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

from datasets.annotations import (
    DERIVED,
    SPLITS,
    clip_boxes,
    doubtful_boxes,
    entry_problems,
    read_content,
    usable_annotations,
)
from datasets.images import find_files, note_headers, read_image
from util.errors import UserError
from util.nested_tensor import NestedTensor

logger = logging.getLogger(__name__)
HEADERS = 1000  # images of a set whose headers are looked at before any is read


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

    Crowd regions are left out; the boxes are those of read_annotations, the images those of read_image. A missing or
    broken image raises UserError, except in training without `strict`: there it is skipped with a warning, and the next
    image takes its place.

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
        self.files = self._find_images(Path(root) / annotations)
        self.ids = sorted(self.files)
        self.boxes = self._read_boxes()
        every = max(1, len(self.ids) // HEADERS)
        note_headers([(self.files[i], self._annotated_size(i)) for i in self.ids[::every]], folder)
        self._warn_without_boxes(split)

    def _find_images(self, annotations: Path) -> dict[Any, Path]:
        """The files by image id; the annotations' file names become theirs."""
        names = {i: image["file_name"] for i, image in self.coco.imgs.items()}
        files, missing = find_files(self.folder, names.values())
        if missing:
            text = f"{annotations} names {len(missing)} images that {self.folder} lacks, such as {missing[0]}"
            if self.strict:
                raise UserError(text)
            logger.warning("%s; skipped", text)
        if not files:
            raise UserError(f"{annotations}: no image to read")
        for i, name in names.items():
            if name in files and files[name].name != name:  # in a folder, or written otherwise
                self.coco.imgs[i]["file_name"] = files[name].relative_to(self.folder).as_posix()
        return {i: files[name] for i, name in names.items() if name in files}

    def _read_boxes(self) -> dict[Any, dict[str, Tensor]]:
        """Boxes of every image, as xyxy in pixels."""
        by_image = [[a for a in self.coco.imgToAnns[i] if not a["iscrowd"]] for i in self.ids]
        anns = [annotation for group in by_image for annotation in group]
        values = {"boxes": clip_boxes(self.coco.imgs, anns)[0],
                  "labels": torch.tensor([a["category_id"] for a in anns], dtype=torch.int64),
                  "area": torch.tensor([float(a["area"]) for a in anns]),
                  "iscrowd": torch.zeros(len(anns), dtype=torch.int64)}
        # Parts of a tensor keep all of it alive, and go to a process with all of it.
        parts = {name: [part.clone() for part in value.split([len(group) for group in by_image])]
                 for name, value in values.items()}
        return {image_id: {name: parts[name][index] for name in parts} for index, image_id in enumerate(self.ids)}

    def _warn_without_boxes(self, split: str) -> None:
        if split == "test" or any(len(target["boxes"]) for target in self.boxes.values()):
            return
        crowds = sum(a["iscrowd"] for a in self.coco.dataset["annotations"])
        logger.warning("%s: no box to %s%s", self.folder.name, "learn from" if self.training else "measure AP with",
                       f": its {crowds} annotations are crowd regions (iscrowd=1)" if crowds else "")

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

    def _open_from(self, index: int) -> tuple[Image.Image, Any, int]:
        """The image at index, or the next one that can be read: (image, its id, how many were skipped)."""
        worker = get_worker_info()
        for skipped in range(len(self.ids)):
            position = (index + skipped) % len(self.ids)
            if worker is not None:
                self.reading[worker.id] = torch.tensor([os.getpid(), position])
            image_id = self.ids[position]
            try:
                return read_image(self.files[image_id], self._annotated_size(image_id)), image_id, skipped
            except UserError as error:
                if self.strict:
                    raise
                logger.warning("%s; skipped", error)
        raise UserError(f"{self.folder}: no image can be read")

    def watch_workers(self, num_workers: int) -> None:
        """To be called before a loader starts `num_workers` processes, which record in shared memory what they read."""
        self.reading = torch.zeros(num_workers, 2, dtype=torch.int64).share_memory_()  # process id, position in ids

    def being_read(self, crash: str) -> list[Path]:
        """The images last opened by the data-loading processes whose ids the error text contains."""
        dead = {int(digits) for digits in re.findall(r"\d+", crash)}
        return [self.files[self.ids[position]] for process, position in self.reading.tolist() if process in dead]

    def _annotated_size(self, image_id: Any) -> tuple[float, float]:
        return self.coco.imgs[image_id]["width"], self.coco.imgs[image_id]["height"]


def read_annotations(root: str | Path, split: str) -> COCO:
    """The annotation file of a split as training and evaluation use it.

    Boxes are cut at the border of their image, with their areas; those that are empty, outside or not finite are
    dropped. The log says how many, and what was derived. Raises UserError that names the file and what is wrong.
    """
    path, name = Path(root) / SPLITS[split][1], SPLITS[split][0]
    content, derived = read_content(root, split)
    for problem in entry_problems(content):
        raise UserError(f"{path}: {problem.text}. tools/inspect_dataset.py lists what is wrong, and its --fix writes a "
                        "corrected copy")
    if derived:
        counts = Counter(problem.kind for problem in derived)
        logger.info("%s: derived %s", name, "; ".join(f"{count} {DERIVED[kind]}" for kind, count in counts.items()))
    images, annotations = {image["id"]: image for image in content["images"]}, content["annotations"]
    doubt = doubtful_boxes(images, annotations)
    if doubt:
        logger.warning("%s: %s", name, doubt)
    usable, cut = usable_annotations(images, annotations)
    if cut:
        logger.info("%s: %d boxes extend beyond their image: cut at its border, for training and evaluation alike",
                    name, cut)
    if len(usable) < len(annotations):
        logger.warning("%s: dropped %d boxes that are empty, outside their image or not finite", name,
                       len(annotations) - len(usable))
    content.setdefault("info", {})  # pycocotools requires it
    content["annotations"] = usable
    for number, annotation in enumerate(usable, 1):
        annotation["id"] = number  # pycocotools needs unique ids above 0
        annotation.pop("segmentation", None)  # most of the file, and unused
    coco = COCO()
    coco.dataset = content
    _index(coco)
    return coco


def _index(coco: COCO) -> None:
    """Builds the look-up tables by id."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()


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
