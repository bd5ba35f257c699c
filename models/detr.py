"""DETR (Carion et al., ECCV 2020): backbone, one encoder and decoder of global attention, shared heads.

B batch, Q queries, C channels, K logits a query.
"""
from torch import Tensor, nn

from models.stage import Stage
from models.structures import FlatFeatures
from util.nested_tensor import Images, NestedTensor
from util.precision import at_least_float32


class DETR(nn.Module):
    """A detector that reads the backbone's last map. PARTS names the modules that the benchmark counts."""

    PARTS = {"backbone": ["backbone.0"], "input projection": ["input_proj"], "encoder": ["transformer.encoder"],
             "decoder": ["transformer.decoder"], "heads": ["class_embed", "bbox_embed"]}

    def __init__(self, backbone: nn.Module, input_proj: nn.Module, transformer: Stage, query_embed: nn.Embedding,
                 class_embed: nn.Module, bbox_embed: nn.Module, aux_loss: bool = True):
        super().__init__()
        self.backbone = backbone
        self.input_proj = input_proj
        self.transformer = transformer
        self.query_embed = query_embed
        self.class_embed = class_embed
        self.bbox_embed = bbox_embed
        self.aux_loss = aux_loss

    def forward(self, samples: Images, targets: list[dict[str, Tensor]] | None = None) -> dict:
        """samples: images [3, H, W], normalised; targets have no say. Returns what `predictions` does."""
        if not isinstance(samples, NestedTensor):
            samples = NestedTensor.from_list(samples)
        maps, positions = self.backbone(samples)
        projected = NestedTensor(self.input_proj(maps[-1].tensors), maps[-1].mask)
        hidden = self.transformer(FlatFeatures.flatten([projected], positions[-1:]), self.query_embed.weight)
        return predictions(hidden, self.class_embed, self.bbox_embed, self.aux_loss)


def predictions(hidden: list[Tensor], class_embed: nn.Module, bbox_embed: nn.Module, aux_loss: bool) -> dict:
    """From the hidden states [B, Q, C] of all decoder layers: "pred_logits" [B, Q, K] and "pred_boxes" [B, Q, 4]
    cxcywh in [0, 1] of the last, and as "aux_outputs" the same of each layer before it (with `aux_loss`, else none).
    """
    layers = [{"pred_logits": at_least_float32(class_embed(x)), "pred_boxes": at_least_float32(bbox_embed(x)).sigmoid()}
              for x in (hidden if aux_loss else hidden[-1:])]
    return layers[-1] | {"aux_outputs": layers[:-1]}
