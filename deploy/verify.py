"""Compares an exported file with PyTorch on the images of a data set."""
import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
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
from inference.backends.torch_model import TorchBackend
from util.class_names import disagreement
from util.errors import UserError
from util.logger import Progress
from util.model_card import ModelCard

COMPARED = 0.1  # least score of a detection that the other must have too
# By what computes. AP in [0, 1]; score; box as a share of the image's longer side. Half precision and int8 move single
# detections, which is why only their AP is judged.
TOLERANCES = {"float32": {"AP": 0.001, "score": 0.01, "box": 0.005}, "float16": {"AP": 0.005},
              "bfloat16": {"AP": 0.005}, "int8": {"AP": 0.01}}


# Two-stage detectors rank proposals by score, and the rank chooses the content of a query. Where two scores are equal
# but for rounding, either order is right, and PyTorch itself has more than one answer: so many times it is asked.
ANSWERS = 64
ROUNDING = 2.0**-22  # standard deviation of the factors, two units in the last place of float32


@dataclass
class Difference:
    """score, box: the largest differences of a detection that both have, see TOLERANCES. compared: how many have.
    only_one: detections of at least COMPARED that one of them has not."""

    score: float = 0.0
    box: float = 0.0
    compared: int = 0
    only_one: int = 0

    def exceeded(self, tolerance: dict[str, float]) -> list[str]:
        over = [name for name in ("score", "box") if not getattr(self, name) <= tolerance.get(name, float("inf"))]
        return over + (["detections"] if "score" in tolerance and self.only_one else [])

    def added(self, other: "Difference") -> "Difference":
        return Difference(max(self.score, other.score), max(self.box, other.box), self.compared + other.compared,
                          self.only_one + other.only_one)


@dataclass
class Comparison:
    """AP: of the file and of PyTorch, -1 without ground truth. ms: of one image, median, without reading and resizing
    it. difference: over all images. ties: images in which the file found what PyTorch finds after another rounding."""

    images: int
    tolerance: dict[str, float]
    AP: dict[str, float] = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)
    difference: Difference = field(default_factory=Difference)
    ties: int = 0

    @property
    def exceeded(self) -> list[str]:
        """Which tolerances are exceeded."""
        apart = abs(self.AP["file"] - self.AP["pytorch"])
        return ([] if apart <= self.tolerance["AP"] else ["AP"]) + self.difference.exceeded(self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exceeded": self.exceeded}

    def __str__(self) -> str:
        found, limits = self.difference, ", ".join(f"{name} {most:g}" for name, most in self.tolerance.items())
        precision = (f"AP {self.AP['file']:.4f}, PyTorch {self.AP['pytorch']:.4f}" if self.AP["pytorch"] >= 0
                     else "no AP, because no object is annotated")
        return (f"{self.images} images: {precision}; "
                f"{self.ms['file']:.0f} ms an image, PyTorch {self.ms['pytorch']:.0f} ms\n"
                f"largest differences of {found.compared} detections: score {found.score:.1e}, box {found.box:.1e} of "
                f"the image; {found.only_one} found by one only\n"
                + (f"images in which rounding decides what PyTorch finds: {self.ties}; compared with the nearest\n"
                   if self.ties else "")
                + (f"over the tolerance ({limits}): {', '.join(self.exceeded)}" if self.exceeded
                   else f"within the tolerance ({limits})"))


def verify(file: Backend, pytorch: TorchBackend, dtype: str, data: CocoDetection, most: int | None = None,
           batch: int = 1) -> Comparison:
    """Both run on the same resized images, `batch` at a time, the first `most` of the data. Raises UserError where
    nothing could be judged."""
    count = len(data) if most is None else min(most, len(data))
    if "score" not in TOLERANCES[dtype] and data.table.crowds[:data.table.starts[count]].all():
        raise UserError(f"no object is annotated in the {count} images of {data.folder} to compare on, and {dtype} "
                        "is judged by its AP alone: name a set with annotations for --verify, or more --verify_images")
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
        for of_file, of_pytorch, image, size in zip(rows["file"], rows["pytorch"], prepared, sizes):
            difference = compare(of_file, of_pytorch, max(size))
            if difference.exceeded(result.tolerance) and not result.difference.exceeded(result.tolerance):
                nearest = nearest_answer(of_file, pytorch, image, size, result.tolerance)
                result.ties += nearest is not None
                difference = nearest or difference
            result.difference = result.difference.added(difference)
    for name in backends:
        result.AP[name] = summarize(data.coco, found[name]).stats[0]
        result.ms[name] = 1000 * median(seconds[name][1:] or seconds[name])  # the first call is slower
    return result


def nearest_answer(of_file: dict[str, Tensor], pytorch: TorchBackend, image: Tensor, size: tuple[int, int],
                   tolerance: dict[str, float]) -> Difference | None:
    """The difference to an answer of PyTorch after another rounding that is within the tolerance, if there is one."""
    for seed in range(ANSWERS):
        with rounded_otherwise(pytorch, seed):
            (answer,) = pytorch.detect([image], [size])
        difference = compare(of_file, answer, max(size))
        if not difference.exceeded(tolerance):
            return difference
    return None


@contextlib.contextmanager
def rounded_otherwise(backend: TorchBackend, seed: int) -> Iterator[None]:
    """Within it, the detector sees images whose values differ by ROUNDING, as a share of each."""
    def change(model: torch.nn.Module, inputs: tuple) -> tuple:
        images, *others = inputs
        noise = torch.randn(images.tensors.shape, generator=torch.Generator().manual_seed(seed))
        changed = images.tensors * (1 + ROUNDING * noise.to(images.tensors.device))
        return (replace(images, tensors=changed), *others)

    hook = backend.model.register_forward_pre_hook(change)
    try:
        yield
    finally:
        hook.remove()


def compare(a: dict[str, Tensor], b: dict[str, Tensor], side: int) -> Difference:
    """Of the detections of one image whose longer side is `side` px. They are matched by label, box and score: their
    order means nothing where scores are equal."""
    cost = (a["boxes"].double()[:, None] - b["boxes"].double()).abs().amax(-1) / side  # cdist overlooks NaN
    cost = cost + (a["scores"].double()[:, None] - b["scores"].double()).abs()
    cost = cost.masked_fill(~cost.isfinite() | (a["labels"][:, None] != b["labels"]), 10)
    rows, columns = (torch.as_tensor(index) for index in linear_sum_assignment(cost))
    matched = cost[rows, columns] < 0.5
    rows, columns = rows[matched], columns[matched]
    result = Difference()
    for found, places in ((a, rows), (b, columns)):
        alone = torch.ones(len(found["scores"]), dtype=torch.bool)
        alone[places] = False
        result.only_one += int((found["scores"][alone] >= COMPARED).sum())
    sure = torch.maximum(a["scores"][rows], b["scores"][columns]) >= COMPARED
    rows, columns = rows[sure], columns[sure]
    if len(rows):
        result.compared = len(rows)
        result.score = float((a["scores"][rows] - b["scores"][columns]).abs().max())
        result.box = float((a["boxes"][rows] - b["boxes"][columns]).abs().max()) / side
    return result


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
    train = DetectionData(folder).sources.get("train")
    split = "train" if train and train.folder.is_dir() else "val"
    data = open_data(folder, artifact.card, split)
    for index in range(len(data)):
        image = read_image(data.path(index))
        pixels = F.pil_to_tensor(F.resize(image, list(artifact.input_size(*image.size))))[None]
        pixels = pixels.expand(artifact.batch or 1, -1, -1, -1)
        yield pixels if artifact.uint8 else pixels.float() / 255, torch.tensor([image.size]).repeat(len(pixels), 1)
