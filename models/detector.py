"""What all detectors share.

B batch, Q queries, K class logits.
"""
from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.backbones import Backbone
from models.heads import LayerPredictions, each_layer, layer_predictions
from models.one_to_many import OneToMany
from models.structures import DecoderOutput, FlatFeatures
from util.nested_tensor import Images, NestedTensor


class Detector(nn.Module):
    """Images to tokens (`features`), tokens to predictions (`detect`).

    The parameters' published names demand that the modules have these attributes. Where the decoder holds the heads
    too, a detector assigns them after it: the first name of a shared parameter is the decoder's.
    """

    backbone: Backbone
    input_proj: nn.Module
    class_embed: nn.Module
    bbox_embed: nn.Module

    def __init__(self, aux_loss: bool, one_to_many: OneToMany | None = None):
        super().__init__()
        self.aux_loss = aux_loss
        self.one_to_many = one_to_many or OneToMany()
        self.detections_only = False  # see models.inference, which sets these two
        self.half_dtype: torch.dtype | None = None

    def forward(self, samples: Images, targets: list[dict[str, Tensor]] | None = None) -> dict:
        """samples: images [3, H, W], normalised; targets (for training only) with "labels" [n], "boxes" [n, 4] cxcywh
        in [0, 1].

        Returns "pred_logits" [B, Q, K], "pred_boxes" [B, Q, 4] cxcywh in [0, 1], "aux_outputs" (a list with the same
        of each decoder layer before the last; empty without aux_loss), in training with one-to-many supervision
        "one2many_outputs" (the same of each layer by the suffix of its losses), and what `detect` adds; of a model
        that models.inference prepared, "pred_logits" and "pred_boxes".
        """
        if not isinstance(samples, NestedTensor):
            samples = NestedTensor.from_list(samples)
        features = self.features(samples)
        if self.half_dtype is not None:
            features = replace(features, pos=features.pos.to(self.half_dtype))
        return self.detect(features, targets)

    @abstractmethod
    def features(self, samples: NestedTensor) -> FlatFeatures:
        """The tokens that the encoder reads."""

    @abstractmethod
    def detect(self, features: FlatFeatures, targets: list[dict[str, Tensor]] | None) -> dict:
        """The outputs, see `forward`."""

    @abstractmethod
    def transformer_parts(self) -> dict[str, list[str]]:
        """The parts between input projection and heads, see `parts`."""

    def parts(self) -> dict[str, list[str]]:
        """The names of the modules of each part, in the order in which an image passes them."""
        return {"backbone": ["backbone.0"], "input projection": ["input_proj"], **self.transformer_parts(),
                "heads": ["class_embed", "bbox_embed"]}

    def predictions(self, decoded: DecoderOutput) -> LayerPredictions:
        """Of all decoder layers, or without aux_loss of the last only."""
        return layer_predictions(decoded, self.class_embed, self.bbox_embed,
                                 last_only=self.detections_only or not self.aux_loss)

    def outputs(self, layers: LayerPredictions, decoded: DecoderOutput, num_queries: int) -> dict:
        """What `forward` returns of any detector. layers: the predictions from `decoded`, without denoising queries;
        further ones for one-to-many come after the first num_queries."""
        if self.detections_only:
            return each_layer(layers)[-1]
        layers, one_to_many = self.one_to_many.divided(layers, decoded, num_queries)
        *before, last = each_layer(layers)
        outputs = {**last, "aux_outputs": before}
        return outputs | ({"one2many_outputs": one_to_many} if one_to_many else {})
