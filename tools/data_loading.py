"""How many samples a second a data-loading process makes: part of tools/benchmark_data.py."""
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets as torchvision_datasets
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from datasets.annotations import SPLITS
from datasets.coco import CocoDetection
from datasets.loaders import train_loader
from datasets.transforms import MEAN, STD, model_input, train_transforms
from training_parts import write_pictures
from util.cpu import keep_freed_memory
from util.markdown import table, three_digits
from util.options import DataOptions

BATCH, ROUNDS = 2, 5


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
    base = next(iter(rates.values()))
    rows = [[name, three_digits(median(found)), three_digits(median(here / its for here, its in zip(found, base)))]
            for name, found in rates.items()]
    return table(["one worker, 640x480 px", "images a second", "times the first"], rows)
