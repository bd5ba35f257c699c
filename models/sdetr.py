"""SDETR, stacked DETR: each stage continues with the query content of the stage before it, on finer tokens.

B batch, Q queries, C channels, L levels.
"""
from typing import cast

import torch
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
    make_input_proj,
    make_postprocessors,
    make_shared_heads,
    num_learned_queries,
    stage_options,
)
from models.stage import Stage
from models.structures import DecoderOutput, FlatFeatures
from util.errors import UserError
from util.nested_tensor import NestedTensor
from util.options import Options


class SDETR(Detector):
    """SDETR, whose stages encode their own tokens, and Lite-SDETR, whose stages read the memory of one `encoder`.

    input_proj: one module per level, see `multi_scale_features`. level_embed [L, C] is added to the positions, for an
    encoder or a stage that reads several levels.
    query_embed: one embedding per stage, which says where its queries look; what they look for is their content.
    """

    input_proj: nn.ModuleList

    def __init__(self, backbone: Backbone, input_proj: nn.ModuleList, stages: list[Stage],
                 query_embed: list[nn.Embedding], heads: SharedHeads, num_queries: int,
                 encoder: nn.Module | None = None, level_embed: nn.Parameter | None = None,
                 one_to_many: OneToMany | None = None, aux_loss: bool = True):
        super().__init__(aux_loss, one_to_many)
        self.num_queries = num_queries
        self.backbone = backbone
        self.input_proj = input_proj
        self.level_embed = level_embed
        self.encoder = encoder
        self.stages = nn.ModuleList(stages)
        self.query_embed = nn.ModuleList(query_embed)
        self.class_embed, self.bbox_embed = heads.class_embed, heads.bbox_embed

    def transformer_parts(self) -> dict[str, list[str]]:
        parts = {} if self.encoder is None else {"encoder": ["encoder"]}
        for i, stage in enumerate(self.stages):
            if stage.encoder is not None:
                parts[f"encoder, stage {i + 1}"] = [f"stages.{i}.encoder"]
            parts[f"decoder, stage {i + 1}"] = [f"stages.{i}.decoder"]
        return parts

    def features(self, samples: NestedTensor) -> FlatFeatures:
        return multi_scale_features(samples, self.backbone, self.input_proj, self.level_embed)

    def detect(self, features: FlatFeatures, targets: list[dict[str, Tensor]] | None) -> dict:
        """Targets are ignored. The layers are those of all stages in turn."""
        memory = features if self.encoder is None else self.encoder(features)
        count = self.num_queries + self.one_to_many.further_queries
        mask = self.one_to_many.mask(count, memory.tokens.device, self.num_queries)
        hidden: list[Tensor] = []
        for stage, query_embed in zip(self.stages, self.query_embed):
            learned = cast(Tensor, query_embed.weight)[:count]
            hidden += stage(memory, learned, hidden[-1] if hidden else None, mask)
        decoded = DecoderOutput(hidden)
        return self.outputs(self.predictions(decoded), decoded, self.num_queries)


def build_sdetr(options: Options) -> Built:
    backbone = make_backbone(options)
    num_levels, dim = len(backbone.num_channels), options.transformer.hidden_dim
    levels = _stage_levels(options, num_levels)
    unread = set(range(num_levels)) - {level for stage in levels for level in stage}
    if unread:
        raise UserError(f"stage_levels={levels}: no stage reads level {min(unread)} of return_interm_indices="
                        f"{options.backbone.return_interm_indices}")
    depths = _per_stage("enc_layers", options.encoder.enc_layers, len(levels))
    num_heads = _per_stage("enc_nheads", options.stages.enc_nheads or options.transformer.nheads, len(levels))
    encoders: list[nn.Module | None] = [
        make_encoder(stage_options(options, len(read), heads, enc_layers=depth), "global")
        for read, depth, heads in zip(levels, depths, num_heads)]
    input_proj = nn.ModuleList(nn.Conv2d(c, dim, kernel_size=1) for c in backbone.num_channels)
    mixed = any(len(stage) > 1 for stage in levels)  # tokens of several levels must be distinguishable
    return _build_stacked(options, backbone, input_proj, levels, encoders,
                          level_embed=_level_embed(num_levels, dim) if mixed else None)


def build_lite_sdetr(options: Options) -> Built:
    """The encoder of Lite-DINO in front of SDETR's stages."""
    shared = options.transformer
    if isinstance(options.encoder.enc_layers, list) or options.stages.enc_nheads is not None:
        raise UserError("Lite-SDETR has one encoder for all stages: enc_layers is a number, and enc_nheads stays unset")
    backbone = make_backbone(options)
    input_proj = make_input_proj(backbone.num_channels, shared.num_feature_levels, shared.hidden_dim)
    levels = _stage_levels(options, shared.num_feature_levels)
    return _build_stacked(options, backbone, input_proj, levels, [None] * len(levels), encoder=make_encoder(options),
                          level_embed=_level_embed(shared.num_feature_levels, shared.hidden_dim))


def _build_stacked(options: Options, backbone: Backbone, input_proj: nn.ModuleList, levels: list[list[int]],
                   encoders: list[nn.Module | None], encoder: nn.Module | None = None,
                   level_embed: nn.Parameter | None = None) -> Built:
    heads = make_shared_heads(options)
    depths = _per_stage("dec_layers", options.decoder.dec_layers, len(levels))
    num_heads = _per_stage("dec_nheads", options.stages.dec_nheads or options.transformer.nheads, len(levels))
    decoders = [make_decoder(stage_options(options, len(read), count, dec_layers=depth), heads, "global")
                for read, depth, count in zip(levels, depths, num_heads)]
    stages = [Stage(*parts) for parts in zip(levels, encoders, decoders)]
    query_embed = [nn.Embedding(num_learned_queries(options), options.transformer.hidden_dim) for _ in levels]
    model = SDETR(backbone, input_proj, stages, query_embed, heads, options.decoder.num_queries, encoder, level_embed,
                  make_one_to_many(options, heads, sum(depths)), options.loss.aux_loss)
    return model, make_criterion(options, sum(depths)), make_postprocessors(options)


def _stage_levels(options: Options, num_levels: int) -> list[list[int]]:
    levels = options.stages.stage_levels
    if not levels:
        raise UserError(f"stage_levels={levels}: a stacked model needs a list of levels for each stage, [[1], [0]]")
    for stage in levels:
        if not stage or stage != sorted(set(stage)) or not set(stage) <= set(range(num_levels)):
            raise UserError(f"stage_levels={levels}: the levels of a stage must be ascending and from 0, the finest, "
                            f"to {num_levels - 1}")
    return levels


def _level_embed(num_levels: int, dim: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(num_levels, dim))


def _per_stage(key: str, value: int | list[int], num_stages: int) -> list[int]:
    """One value per stage; a single one is for all of them."""
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, num_stages):
        raise UserError(f"{key}={value!r} must be a number, or a list with one for each of the {num_stages} stages")
    return values if len(values) == num_stages else values * num_stages
