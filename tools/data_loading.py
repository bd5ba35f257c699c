"""How many samples a second a data-loading process makes, what augmentations cost, and what draft mode would change:
parts of tools/benchmark_data.py.
"""
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets as torchvision_datasets
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from datasets.annotations import SPLITS
from datasets.augmentation import Augmentation
from datasets.coco import CocoDetection
from datasets.data import DetectionData
from datasets.loaders import train_loader
from datasets.phases import DEFAULTS
from datasets.transforms import MEAN, STD, model_input, train_transforms
from training_parts import write_pictures
from util.cpu import keep_freed_memory
from util.errors import UserError
from util.markdown import table, three_digits
from util.options import DataOptions

BATCH, ROUNDS = 2, 5
MIXED = ("mosaic", "mixup", "copy_paste", "scale_jitter")


class RandomCrop(v2.Transform):
    """DETR's crop, of a random size."""

    def __init__(self, low: int, high: int):
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = v2._utils.query_size(flat_inputs)
        height, width = (int(torch.randint(min(self.low, side), min(self.high, side) + 1, ())) for side in sides)
        return {"top": int(torch.randint(sides[0] - height + 1, ())), "height": height,
                "left": int(torch.randint(sides[1] - width + 1, ())), "width": width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self._call_kernel(F.crop, inpt, **params)


def torchvision_loader(root: Path, options: DataOptions, tensors: bool) -> DataLoader:
    """DETR's augmentations as torchvision's own classes: v2 transforms of its wrapped CocoDetection. Images are tensors
    from the start or, as by default in torchvision's references/detection, PIL's to the end."""
    resize = v2.RandomShortestSize(options.data_aug_scales, options.data_aug_max_size)
    crop = v2.Compose([v2.RandomShortestSize(options.data_aug_scales2_resize), RandomCrop(
        *options.data_aug_scales2_crop), resize])
    changes = [v2.RandomHorizontalFlip(), v2.RandomChoice([resize, crop]), v2.SanitizeBoundingBoxes()]
    changes.insert(0 if tensors else len(changes), v2.ToImage())
    transforms = v2.Compose([*changes, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    images, annotations = SPLITS["train"]
    dataset = torchvision_datasets.wrap_dataset_for_transforms_v2(
        torchvision_datasets.CocoDetection(root / images, root / annotations, transforms=transforms),
        target_keys=("boxes", "labels"))
    return DataLoader(dataset, BATCH, sampler=RandomSampler(dataset, replacement=True, num_samples=10**6),
                      num_workers=1, collate_fn=list)


def rate(batches: Iterable, seconds: float) -> float:
    """Images a second, after the first batches."""
    count, start = 0, 0.0
    for number, _ in enumerate(batches):
        if number == 4:
            start = time.perf_counter()
        elif number > 4:
            count += BATCH
            if time.perf_counter() - start > seconds:
                break
    return count / (time.perf_counter() - start)


def compare_loaders(seconds: float) -> str:
    """A table of the median rates, measured in turn. Images of this project are normalised where they are used, by
    the GPU or the CPU that trains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = DataOptions()
    keep_freed_memory()  # as main.py does
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        dataset = CocoDetection(folder, "train", train_transforms(options))
        makers = {"torchvision's classes, PIL images": lambda: torchvision_loader(Path(folder), options, False),
                  "torchvision's classes, tensors": lambda: torchvision_loader(Path(folder), options, True),
                  "this project": lambda: train_loader(dataset, BATCH, 1, seed=0, epoch_batches=10**6),
                  "this project, normalised by the CPU that trains": lambda: (
                      model_input(samples) for samples, _ in train_loader(dataset, BATCH, 1, seed=0,
                                                                          epoch_batches=10**6))}
        rates: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(ROUNDS):
            for name, make in makers.items():
                rates[name].append(rate(make(), seconds / ROUNDS))
    torch.set_num_threads(threads)
    base = next(iter(rates.values()))
    rows = [[name, three_digits(median(found)), three_digits(median(here / its for here, its in zip(found, base)))]
            for name, found in rates.items()]
    return table(["one worker, 640x480 px", "images a second", "times the first"], rows)


def compare_augmentations(root: Path, seconds: float) -> str:
    """A table of how long a sample of the train set takes with each augmentation in every sample, measured in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    data, phases = DetectionData(root), {name: (0.0, 1.0) for name in DEFAULTS}
    names: dict[str, tuple[str, ...]] = {
        "none": (), **{name: (name,) for name in MIXED}, "mosaic and mixup": ("mosaic", "mixup"), "all": MIXED}
    sets = {}
    for row, used in names.items():
        keys: dict[str, Any] = {f"data_aug_{name}": 1.0 for name in used}
        sets[row] = CocoDetection(data, "train", Augmentation(DataOptions(aug_phases=phases, **keys)))
    times: dict[str, list[float]] = {name: [] for name in sets}
    for _ in range(ROUNDS):
        for name, dataset in sets.items():
            times[name].append(1e3 / rate(train_loader(dataset, BATCH, 1, seed=0, epoch_batches=10**6),
                                          seconds / ROUNDS))
    torch.set_num_threads(threads)
    rows = [[name.replace("_", " "), three_digits(median(found)),
             three_digits(median(here / plain for here, plain in zip(found, times["none"])))]
            for name, found in times.items()]
    return table(["one worker", "ms a sample", "times none"], rows)


def decoded(path: Path, side: int | None = None) -> np.ndarray:
    """[H, W, 3] uint8. side: shorter side in px that the picture will have. Draft mode decodes it at a half, a quarter
    or an eighth of its size, where that is enough."""
    with Image.open(path) as image:
        if side is not None:
            image.draft("RGB", shorter(image.size, side))
        return np.asarray(image.convert("RGB"))


def shorter(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) whose shorter side is `side`."""
    return round(size[0] * side / min(size)), round(size[1] * side / min(size))


def compare_draft(folder: Path, side: int) -> str:
    """A table of what Pillow's draft mode gains for images whose shorter side becomes `side` px, and of how much the
    resized pixels, 0 to 255, differ."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise UserError(f"no .jpg in {folder}")
    seconds: dict[str, list[float]] = {"whole": [], "draft": []}
    differences = []
    for path in files:
        pixels = []
        for name, draft_side in (("whole", None), ("draft", side)):
            start = time.perf_counter()
            picture = decoded(path, draft_side)
            seconds[name].append(time.perf_counter() - start)
            pixels.append(picture)
        target = shorter(pixels[0].shape[1::-1], side)
        whole, draft = (np.asarray(Image.fromarray(picture).resize(target)).astype(int) for picture in pixels)
        differences.append(np.abs(whole - draft))
    times = [three_digits(1e3 * median(found)) for found in seconds.values()]
    largest, mean = max(int(found.max()) for found in differences), np.mean([found.mean() for found in differences])
    return table([f"{len(files)} pictures to {side} px", "ms decoded whole", "ms in draft mode", "largest difference",
                  "mean difference"], [[folder.name, *times, str(largest), f"{mean:.2f}"]])
