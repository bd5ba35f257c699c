"""Decoders by the name that config key `decoder` gives.

An entry is `builder(options: Options, heads: Heads) -> nn.Module`. What it builds maps (Queries, FlatFeatures) to
DecoderOutput: the hidden state of each layer and the boxes that entered it. Queries have boxes in DINO and Deformable
DETR, position encodings in all but DINO. `heads` are those of the detector, for decoders that refine boxes; the
detector applies them to the hidden states. In a stacked model each stage has options of its own: `dec_layers` and
`nheads` are then the stage's.
"""
from collections.abc import Callable

from torch import nn

from models.decoders.deformable import build_deformable_decoder
from models.decoders.dino import build_dino_decoder
from models.decoders.global_attention import build_global_decoder
from models.heads import Heads
from util.options import Options

DECODERS: dict[str, Callable[[Options, Heads], nn.Module]] = {
    "deformable": build_deformable_decoder,
    "dino": build_dino_decoder,
    "global": build_global_decoder,
}
