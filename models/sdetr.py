"""SDETR, stacked DETR: each stage's queries go on from the content that the stage before it found, on finer tokens.

B batch, Q queries, C channels, L levels.
"""
from torch import Tensor, nn

from models.detr import predictions
from models.features import multi_scale_features
from models.stage import Stage
from models.structures import FlatFeatures
from util.nested_tensor import Images, NestedTensor


class SDETR(nn.Module):
    """SDETR, whose stages encode their own tokens, and Lite-SDETR, whose stages read the memory of one `encoder`.

    input_proj: one module a level, see `multi_scale_features`. level_embed [L, C] is added to the positions, for an
    encoder or a stage that reads several levels.
    query_embed: one embedding a stage, which says where its queries look; what they look for is their content.
    PARTS names the modules of each part that the benchmark counts.
    """

    def __init__(self, backbone: nn.Module, input_proj: nn.ModuleList, stages: list[Stage],
                 query_embed: list[nn.Embedding], class_embed: nn.Module, bbox_embed: nn.Module,
                 encoder: nn.Module | None = None, level_embed: nn.Parameter | None = None, aux_loss: bool = True):
        super().__init__()
        self.backbone = backbone
        self.input_proj = input_proj
        self.level_embed = level_embed
        self.encoder = encoder
        self.stages = nn.ModuleList(stages)
        self.query_embed = nn.ModuleList(query_embed)
        self.class_embed = class_embed
        self.bbox_embed = bbox_embed
        self.aux_loss = aux_loss

    @property
    def PARTS(self) -> dict[str, list[str]]:
        parts = {"backbone": ["backbone.0"], "input projection": ["input_proj"]}
        if self.encoder is not None:
            parts["encoder"] = ["encoder"]
        for i, stage in enumerate(self.stages):
            if stage.encoder is not None:
                parts[f"encoder, stage {i + 1}"] = [f"stages.{i}.encoder"]
            parts[f"decoder, stage {i + 1}"] = [f"stages.{i}.decoder"]
        return parts | {"heads": ["class_embed", "bbox_embed"]}

    def forward(self, samples: Images, targets: list[dict[str, Tensor]] | None = None) -> dict:
        """samples: images [3, H, W], normalised; targets have no say. Returns what `predictions` does, for the layers
        of all stages in turn.
        """
        if not isinstance(samples, NestedTensor):
            samples = NestedTensor.from_list(samples)
        features = self.features(samples)
        memory = features if self.encoder is None else self.encoder(features)
        hidden, content = [], None
        for stage, query_embed in zip(self.stages, self.query_embed):
            hidden += stage(memory, query_embed.weight, content)
            content = hidden[-1]
        return predictions(hidden, self.class_embed, self.bbox_embed, self.aux_loss)

    def features(self, samples: NestedTensor) -> FlatFeatures:
        return multi_scale_features(samples, self.backbone, self.input_proj, self.level_embed)
