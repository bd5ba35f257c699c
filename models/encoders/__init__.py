"""Encoders by the name that config key `encoder` gives.

An entry is `builder(options: Options) -> nn.Module`. What it builds maps FlatFeatures to FlatFeatures, with the tokens
of the levels that are read after it updated. In a stacked model each stage has options of its own: `enc_layers`,
`nheads` and `num_feature_levels` are then the stage's.
"""
from collections.abc import Callable

from torch import nn

from models.encoders.deformable import build_deformable_encoder
from models.encoders.global_attention import build_global_encoder
from models.encoders.interleaved import build_interleaved_encoder
from util.options import Options

ENCODERS: dict[str, Callable[[Options], nn.Module]] = {
    "deformable": build_deformable_encoder,
    "interleaved": build_interleaved_encoder,
    "global": build_global_encoder,
}
