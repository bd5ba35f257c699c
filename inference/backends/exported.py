"""What the runtimes of exported files share.

B batch, n detections of an image.
"""
from abc import abstractmethod

import torch
from torch import Tensor

from inference.artifact import Artifact
from inference.backends import Backend, in_order, same_size_groups


class ExportedBackend(Backend):
    """A file that tools/export.py wrote."""

    artifact: Artifact

    def __init__(self, artifact: Artifact):
        self.artifact, self.card = artifact, artifact.card

    @abstractmethod
    def run(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The file's graph, see deploy.graph.DetectionGraph: labels [B, n], boxes [B, n, 4], scores [B, n]."""

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        return self.artifact.input_size(width, height)

    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        """A file of a fixed batch gets the last image again where fewer are left."""
        found: list[dict[str, Tensor]] = [{}] * len(images)
        for group in same_size_groups(images):
            step = self.artifact.batch or len(group)
            for start in range(0, len(group), step):
                part = group[start:start + step]
                batch = part + part[-1:] * (step - len(part))
                pixels = torch.stack([images[i] for i in batch])
                outputs = self.run(pixels if self.artifact.uint8 else pixels.float() / 255,
                                   torch.tensor([sizes[i] for i in batch]))
                for place, labels, boxes, scores in zip(part, *outputs):
                    found[place] = in_order(scores, labels, boxes, self.artifact.nms_iou_threshold)
        return found
