"""Box and class heads, and what they predict from a decoder's output.

B batch, Q queries, C channels, K class logits.
"""
import copy
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.linear import Linear
from models.layers.mlp import MLP
from models.structures import DecoderOutput
from util.box_ops import apply_box_delta
from util.precision import at_least_float32

Predictions = dict[str, Tensor]  # "pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh in [0, 1]
LayerPredictions = dict[str, Tensor]  # the same of L layers: [L, B, Q, K] and [L, B, Q, 4]

PRIOR_BIAS = -math.log(99)  # a class's prior probability is 0.01 (focal loss: RetinaNet, section 3.3)


class LayerHeads:
    """Heads of the decoder's layers, lists with one each, and of the encoder's proposals; each shared or separate.

    Initially every predicted box is its reference.
    """

    def __init__(self, dim: int, num_classes: int, num_layers: int, share_bbox: bool = True, share_class: bool = True,
                 share_enc_bbox: bool = False, share_enc_class: bool = False):
        def one_per_layer(head: nn.Module, share: bool) -> nn.ModuleList:
            return nn.ModuleList(head if share else copy.deepcopy(head) for _ in range(num_layers))

        bbox, classes = MLP(dim, dim, 4, 3), Linear(dim, num_classes)
        nn.init.zeros_(bbox.output.weight)
        nn.init.zeros_(bbox.output.bias)
        nn.init.constant_(classes.bias, PRIOR_BIAS)
        self.num_classes = num_classes
        self.bbox_embed = one_per_layer(bbox, share_bbox)
        self.class_embed = one_per_layer(classes, share_class)
        self.enc_out_bbox_embed = bbox if share_enc_bbox else copy.deepcopy(bbox)
        self.enc_out_class_embed = classes if share_enc_class else copy.deepcopy(classes)

    def start_with_small_boxes(self) -> None:
        """The first layer's head predicts sides of sigmoid(-2) of the image where its reference is a point."""
        nn.init.constant_(cast(MLP, self.bbox_embed[0]).output.bias[2:], -2.0)


class SharedHeads:
    """One box head and one class head for all layers (DETR, section 3.2). focal: the class logits start at the prior
    of the focal loss.
    """

    def __init__(self, dim: int, num_logits: int, focal: bool):
        self.class_embed = Linear(dim, num_logits)
        self.bbox_embed = MLP(dim, dim, 4, 3)
        if focal:
            nn.init.constant_(self.class_embed.bias, PRIOR_BIAS)


Heads = LayerHeads | SharedHeads


def layer_predictions(decoded: DecoderOutput, class_embed: nn.Module, bbox_embed: nn.Module,
                      last_only: bool = False) -> LayerPredictions:
    """The predictions of all decoder layers, or of the last only. A head is one for all layers, or an nn.ModuleList
    with one per layer.
    """
    depth = len(decoded.hidden)
    layers = slice(depth - 1 if last_only else 0, depth)
    hidden = _stack(decoded.hidden[layers])
    if decoded.norm is not None:
        hidden = decoded.norm(hidden)
    boxes = _apply(bbox_embed, hidden, layers)
    if decoded.reference is not None:
        boxes = apply_box_delta(_stack([_as_box(x) for x in decoded.reference[layers]]), boxes, decoded.eps)
    return {"pred_logits": at_least_float32(_apply(class_embed, hidden, layers)),
            "pred_boxes": at_least_float32(boxes).sigmoid()}


def _apply(head: nn.Module, hidden: Tensor, layers: slice) -> Tensor:
    """The output of a head, or of each layer's own, for hidden states [L, B, Q, C] of these layers; one call where they
    share it.
    """
    if not isinstance(head, nn.ModuleList):
        return head(hidden)
    heads = list(head)[layers]
    if all(other is heads[0] for other in heads):
        return heads[0](hidden)
    return torch.stack([own(x) for own, x in zip(heads, hidden)])


def _as_box(reference: Tensor) -> Tensor:
    """A point becomes a box whose sides have logit 0."""
    return reference if reference.shape[-1] == 4 else F.pad(reference, (0, 2), value=0.5)


def _stack(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


def split_queries(layers: LayerPredictions, count: int) -> tuple[LayerPredictions, LayerPredictions]:
    """The predictions of the first `count` queries, of all if there are fewer, and those of the others."""
    queries = layers["pred_boxes"].shape[2]
    count = min(count, queries)
    parts = {name: x.split([count, queries - count], 2) for name, x in layers.items()}
    return {name: first for name, (first, _) in parts.items()}, {name: others for name, (_, others) in parts.items()}


def each_layer(layers: LayerPredictions) -> list[Predictions]:
    return [dict(zip(layers, values)) for values in zip(*(x.unbind() for x in layers.values()))]


def by_suffix(layers: LayerPredictions) -> dict[str, Predictions]:
    """Predictions of the layers under the suffixes of their losses: "_0", "_1" ..., and "" for the last."""
    each = each_layer(layers)
    return dict(zip([*(f"_{i}" for i in range(len(each) - 1)), ""], each))
