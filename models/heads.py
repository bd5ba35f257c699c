"""Box and class heads, and what they make of a decoder's output.

B batch, Q queries, K classes.
"""
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.mlp import MLP
from models.structures import DecoderOutput
from util.box_ops import moved
from util.precision import at_least_float32


class Heads:
    """Box and class heads of the decoder's layers and of the encoder's proposals, each shared or separate."""

    def __init__(self, dim: int, num_classes: int, num_layers: int, share_bbox: bool = True, share_class: bool = True,
                 share_enc_bbox: bool = False, share_enc_class: bool = False):
        def one_a_layer(head: nn.Module, share: bool) -> nn.ModuleList:
            return nn.ModuleList(head if share else copy.deepcopy(head) for _ in range(num_layers))

        bbox, classes = MLP(dim, dim, 4, 3), nn.Linear(dim, num_classes)
        nn.init.zeros_(bbox.layers[-1].weight)
        nn.init.zeros_(bbox.layers[-1].bias)
        nn.init.constant_(classes.bias, -math.log(99))  # prior probability 0.01 (focal loss)
        self.bbox_embed = one_a_layer(bbox, share_bbox)
        self.class_embed = one_a_layer(classes, share_class)
        self.enc_out_bbox_embed = bbox if share_enc_bbox else copy.deepcopy(bbox)
        self.enc_out_class_embed = classes if share_enc_class else copy.deepcopy(classes)


def layer_predictions(decoded: DecoderOutput, class_embed: nn.ModuleList, bbox_embed: nn.ModuleList,
                      eps: float) -> list[dict[str, Tensor]]:
    """"pred_logits" [B, Q, K] and "pred_boxes" [B, Q, 4] cxcywh in [0, 1] of each decoder layer.

    eps: of the inverse sigmoid of the boxes that entered a layer.
    """
    hidden = torch.stack(decoded.hidden)
    # A point becomes a box whose sides have logit 0.
    reference = torch.stack([F.pad(x, (0, 4 - x.shape[-1]), value=0.5) for x in decoded.reference])
    logits = at_least_float32(_of_each_layer(class_embed, hidden))
    boxes = at_least_float32(moved(reference, _of_each_layer(bbox_embed, hidden), eps)).sigmoid()
    return [{"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, boxes)]


def _of_each_layer(heads: nn.ModuleList, hidden: Tensor) -> Tensor:
    """What each layer's head makes of its output [L, B, Q, C]; in one go where all share a head."""
    if all(head is heads[0] for head in heads):
        return heads[0](hidden)
    return torch.stack([head(x) for head, x in zip(heads, hidden)])


def by_suffix(layers: list[dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Predictions of the layers under the suffixes of their losses: "_0", "_1" ..., and "" for the last."""
    return dict(zip([*(f"_{i}" for i in range(len(layers) - 1)), ""], layers))
