"""What runs a detector: PyTorch, or the runtime of an exported file."""
from abc import ABC, abstractmethod

from torch import Tensor
from torchvision.ops import batched_nms

from util.model_card import ModelCard


class Backend(ABC):
    """A detector that is ready to run on prepared images."""

    card: ModelCard

    @abstractmethod
    def input_size(self, width: int, height: int) -> tuple[int, int]:
        """The (height, width) to which an image of width x height px is resized for this detector, px."""

    @abstractmethod
    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """images: RGB, uint8 [3, h, w] on the CPU, of the size that input_size says, which may differ between them.
        sizes: (width, height) of each before it was resized.

        Returns for each "scores" [n] in [0, 1], descending, "labels" [n] category ids, "boxes" [n, 4] xyxy in pixels of
        `sizes`, on the CPU, after NMS where the detector's config has it.
        """


def in_order(scores: Tensor, labels: Tensor, boxes: Tensor, nms_iou_threshold: float = -1) -> dict[str, Tensor]:
    """The detections of one image [n], [n], [n, 4] in descending order of score, after class-wise NMS where the
    threshold is above 0."""
    if nms_iou_threshold > 0:
        order = batched_nms(boxes, scores, labels, nms_iou_threshold)  # in that order
    else:
        order = scores.argsort(descending=True, stable=True)
    return {"scores": scores[order], "labels": labels[order], "boxes": boxes[order]}


def same_size_groups(images: list[Tensor]) -> list[list[int]]:
    """The places of the images [3, h, w] of each size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(place)
    return list(groups.values())
