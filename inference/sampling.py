"""What the queries behind the detections in an image attended to: where they sampled, by decoder layer, level and head.

n detections, Q queries, M heads, L levels, P points, N tokens of all levels.
"""
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from inference.backends.torch_model import TorchBackend
from models.attention_maps import Attended, as_map, record_attention


@dataclass(frozen=True)
class Attention:
    """Of one query, in one decoder layer, to maps of `shapes` (H, W). The weights of a head have a sum of 1.

    Deformable: weights [M, L, P], and points [M, L, P, 2] (x, y) in pixels of the image. Global: weights [M, N].
    """

    shapes: list[tuple[int, int]]
    weights: Tensor
    points: Tensor | None

    def heat_map(self, heads: list[int]) -> Tensor:
        """Global attention [H, W] over the image, as the mean over heads."""
        return as_map(self.weights[heads].mean(0), self.shapes)


@dataclass(frozen=True)
class Inspected:
    """found: "scores" [n] in [0, 1], descending, "labels" [n], "boxes" [n, 4] xyxy in pixels of the image, and (unless
    there are no layers) "queries" [n], which each comes from. size: (width, height) of the image. layers: of the
    decoder, in the order in which they ran, with the attention of these detections; none of an exported file.
    """

    found: dict[str, Tensor]
    size: tuple[int, int]
    layers: list[Attended]

    def attention(self, detection: int, layer: int) -> Attention:
        """Of the query behind a detection, both counted from 0."""
        attended = self.layers[layer]
        points = attended.locations
        if points is not None:
            points = points[detection] * points.new_tensor(self.size)
        return Attention(attended.shapes, attended.weights[detection], points)

    def layer_names(self) -> list[str]:
        """"1", "2", ...; "1.1", "1.2", "2.1", ... where several decoders follow each other."""
        parts = list(dict.fromkeys(layer.part for layer in self.layers))
        numbers = dict.fromkeys(parts, 0)
        names = []
        for layer in self.layers:
            numbers[layer.part] += 1
            before = f"{parts.index(layer.part) + 1}." if len(parts) > 1 else ""
            names.append(f"{before}{numbers[layer.part]}")
        return names


def inspect(backend: TorchBackend, image: Image.Image, score: float) -> Inspected:
    """The detections in an RGB image with at least this score, as the backend finds them, and their attention."""
    outputs, records = forward_recorded(backend, image, encoders=False)
    (found,) = backend.postprocess.with_queries(outputs, torch.tensor([image.size[::-1]]))
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["scores"][order] >= score]
    found = {name: value[order] for name, value in found.items()}
    queries = found["queries"]
    layers = [replace(record, weights=record.weights[queries],
                      locations=None if record.locations is None else record.locations[queries]) for record in records]
    return Inspected(found, image.size, layers)


@torch.inference_mode()
def forward_recorded(backend: TorchBackend, image: Image.Image,
                     encoders: bool = True) -> tuple[dict[str, Tensor], list[Attended]]:
    """The model's "pred_logits" [1, Q, K] and "pred_boxes" [1, Q, 4] (cxcywh in [0, 1]) of an RGB image, and what its
    layers attended to, without `encoders` only those of the decoder; in float32 on the CPU. One thread at a time."""
    prepared = F.pil_to_tensor(F.resize(image, list(backend.input_size(*image.size))))
    with record_attention(backend.model, encoders) as records:
        outputs = backend.model(backend.model_input([prepared]))
    records = [replace(record, weights=record.weights.float().cpu(),
                       locations=None if record.locations is None else record.locations.float().cpu())
               for record in records]
    return {name: outputs[name].cpu() for name in ("pred_logits", "pred_boxes")}, records
