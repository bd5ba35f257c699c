"""Compares an exported file with PyTorch on the images of a data set."""
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from datasets.coco import CocoDetection
from datasets.coco_eval import Detections, coco_results, summarize
from datasets.data import DetectionData
from datasets.images import read_image
from inference.artifact import Artifact
from inference.backends import Backend
from util.class_names import disagreement
from util.errors import UserError
from util.logger import Progress
from util.model_card import ModelCard

COMPARED = 0.1  # least score of a detection that the other must have too
# By what computes. AP in [0, 1]; score; box as a share of the image's longer side. Half precision and int8 move single
# detections, which is why only their AP is judged.
TOLERANCES = {"float32": {"AP": 0.001, "score": 0.01, "box": 0.005}, "float16": {"AP": 0.005},
              "bfloat16": {"AP": 0.005}, "int8": {"AP": 0.01}}


@dataclass
class Comparison:
    """AP: of the file and of PyTorch, -1 without ground truth. score, box: the largest differences of a detection that
    both have, see TOLERANCES. only_one: detections of at least COMPARED that one of them has not. ms: of one image,
    median, without reading and resizing it."""

    images: int
    tolerance: dict[str, float]
    AP: dict[str, float] = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)
    score: float = 0.0
    box: float = 0.0
    compared: int = 0
    only_one: int = 0

    @property
    def exceeded(self) -> list[str]:
        """Which tolerances are exceeded."""
        found = {"AP": abs(self.AP["file"] - self.AP["pytorch"]), "score": self.score, "box": self.box}
        over = [name for name, most in self.tolerance.items() if not found[name] <= most]  # NaN too
        return over + (["detections"] if "score" in self.tolerance and self.only_one else [])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exceeded": self.exceeded}

    def __str__(self) -> str:
        limits = ", ".join(f"{name} {most:g}" for name, most in self.tolerance.items())
        return (f"{self.images} images: AP {self.AP['file']:.4f}, PyTorch {self.AP['pytorch']:.4f}; "
                f"{self.ms['file']:.0f} ms an image, PyTorch {self.ms['pytorch']:.0f} ms\n"
                f"largest differences of {self.compared} detections: score {self.score:.1e}, box {self.box:.1e} of the "
                f"image; {self.only_one} found by one only\n"
                + (f"over the tolerance ({limits}): {', '.join(self.exceeded)}" if self.exceeded
                   else f"within the tolerance ({limits})"))


def verify(file: Backend, pytorch: Backend, dtype: str, data: CocoDetection, most: int | None = None,
           batch: int = 1) -> Comparison:
    """Both run on the same resized images, `batch` at a time, the first `most` of the data."""
    count = len(data) if most is None else min(most, len(data))
    result = Comparison(count, TOLERANCES[dtype])
    backends = {"file": file, "pytorch": pytorch}
    found: dict[str, Detections] = {name: {} for name in backends}
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    batches = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    for chosen in Progress("verify", len(batches))(batches):
        images = [read_image(data.path(index)) for index in chosen]
        prepared, sizes = [prepare(file, image) for image in images], [image.size for image in images]
        rows = {}
        for name, backend in backends.items():
            start = time.perf_counter()
            rows[name] = backend.detect(prepared, sizes)
            seconds[name].append((time.perf_counter() - start) / len(chosen))
            found[name] |= coco_results([data.table.image_id(index) for index in chosen], rows[name], data.names)
        for of_file, of_pytorch, size in zip(rows["file"], rows["pytorch"], sizes):
            compare(result, of_file, of_pytorch, max(size))
    for name in backends:
        result.AP[name] = summarize(data.coco, found[name]).stats[0]
        result.ms[name] = 1000 * median(seconds[name][1:] or seconds[name])  # the first call is slower
    return result


def compare(result: Comparison, a: dict[str, Tensor], b: dict[str, Tensor], side: int) -> None:
    """Adds the differences between the detections of one image whose longer side is `side` px. Detections are matched
    by label, box and score: their order means nothing where scores are equal."""
    cost = (a["boxes"].double()[:, None] - b["boxes"].double()).abs().amax(-1) / side  # cdist overlooks NaN
    cost = cost + (a["scores"].double()[:, None] - b["scores"].double()).abs()
    cost = cost.masked_fill(~cost.isfinite() | (a["labels"][:, None] != b["labels"]), 10)
    rows, columns = (torch.as_tensor(index) for index in linear_sum_assignment(cost))
    matched = cost[rows, columns] < 0.5
    rows, columns = rows[matched], columns[matched]
    for found, places in ((a, rows), (b, columns)):
        alone = torch.ones(len(found["scores"]), dtype=torch.bool)
        alone[places] = False
        result.only_one += int((found["scores"][alone] >= COMPARED).sum())
    sure = torch.maximum(a["scores"][rows], b["scores"][columns]) >= COMPARED
    rows, columns = rows[sure], columns[sure]
    if len(rows):
        result.compared += len(rows)
        result.score = max(result.score, float((a["scores"][rows] - b["scores"][columns]).abs().max()))
        result.box = max(result.box, float((a["boxes"][rows] - b["boxes"][columns]).abs().max()) / side)


def prepare(backend: Backend, image: Image.Image) -> Tensor:
    """The image as the backend reads it, uint8 [3, h, w]."""
    return F.pil_to_tensor(F.resize(image, list(backend.input_size(*image.size))))


def open_data(folder: Path, card: ModelCard, split: str = "val") -> CocoDetection:
    """One split of a data set. Raises UserError where its category ids mean other classes than the detector's."""
    data = CocoDetection(folder, split, torch.nn.Identity(), strict=True)
    fault = disagreement(data.names, f"the {split} set of {folder}", card.class_names, "the detector")
    if fault:
        raise UserError(fault)
    return data


def calibration(folder: Path, artifact: Artifact) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of the graph from the training images of a data set, or from those of val where it has none."""
    split = "train" if "train" in DetectionData(folder).sources else "val"
    data = open_data(folder, artifact.card, split)
    for index in range(len(data)):
        image = read_image(data.path(index))
        pixels = F.pil_to_tensor(F.resize(image, list(artifact.input_size(*image.size))))[None]
        pixels = pixels.expand(artifact.batch or 1, -1, -1, -1)
        yield pixels if artifact.uint8 else pixels.float() / 255, torch.tensor([image.size]).repeat(len(pixels), 1)
