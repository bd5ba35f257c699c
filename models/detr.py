"""DETR (Carion et al., ECCV 2020): backbone, one encoder and decoder of global attention, shared heads.

B batch, Q queries, C channels, K class logits.
"""
from torch import Tensor, nn

from models.backbones import Backbone
from models.detector import Detector
from models.features import multi_scale_features
from models.heads import SharedHeads
from models.one_to_many import OneToMany, make_one_to_many
from models.parts import (
    Built,
    make_backbone,
    make_criterion,
    make_decoder,
    make_encoder,
    make_postprocessors,
    make_shared_heads,
    num_learned_queries,
)
from models.stage import Stage
from models.structures import DecoderOutput, FlatFeatures
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.options import Options


class DETR(Detector):
    """A detector that reads the backbone's last map."""

    def __init__(self, backbone: Backbone, input_proj: nn.Module, transformer: Stage, query_embed: nn.Embedding,
                 heads: SharedHeads, num_queries: int, one_to_many: OneToMany | None = None, aux_loss: bool = True):
        super().__init__(aux_loss, one_to_many)
        self.num_queries = num_queries
        self.backbone = backbone
        self.input_proj = input_proj
        self.transformer = transformer
        self.query_embed = query_embed
        self.class_embed, self.bbox_embed = heads.class_embed, heads.bbox_embed

    def transformer_parts(self) -> dict[str, list[str]]:
        return {"encoder": ["transformer.encoder"], "decoder": ["transformer.decoder"]}

    def features(self, samples: NestedTensor) -> FlatFeatures:
        return multi_scale_features(samples, self.backbone, [self.input_proj])

    def detect(self, features: FlatFeatures, targets: list[dict[str, Tensor]] | None) -> dict:
        """Targets are ignored."""
        count = self.num_queries + self.one_to_many.further_queries
        mask = self.one_to_many.mask(count, features.tokens.device, self.num_queries)
        decoded = DecoderOutput(self.transformer(features, self.query_embed.weight[:count], attn_mask=mask))
        return self.outputs(self.predictions(decoded), decoded, self.num_queries)


def build_detr(options: Options) -> Built:
    dim, depth = options.transformer.hidden_dim, options.decoder.depth
    if len(options.backbone.return_interm_indices) != 1:
        raise UserError(f"return_interm_indices={options.backbone.return_interm_indices}: DETR reads one map, [3]")
    if options.stages.stage_levels is not None:
        raise UserError("stage_levels is for stacked models (sdetr, lite_sdetr); DETR has one stage")
    backbone, heads = make_backbone(options), make_shared_heads(options)
    model = DETR(backbone, nn.Conv2d(backbone.num_channels[0], dim, kernel_size=1),
                 Stage([0], make_encoder(options, "global"), make_decoder(options, heads, "global")),
                 nn.Embedding(num_learned_queries(options), dim), heads, options.decoder.num_queries,
                 make_one_to_many(options, heads, depth), options.loss.aux_loss)
    return model, make_criterion(options, depth), make_postprocessors(options)
