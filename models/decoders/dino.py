"""The DINO decoder (DINO, section 3): box queries refined layer by layer.

B batch, Q queries, C channels, L levels.
"""
from torch import Tensor, nn

from models.decoders.deformable import DeformableDecoder, make_layers, per_layer
from models.heads import Heads
from models.layers.initialise import initialise_matrices
from models.layers.mlp import MLP
from models.layers.position_encoding import box_sine_embedding
from models.structures import Queries
from util.options import Options


class DINODecoder(DeformableDecoder):
    """The deformable decoder with positions that follow the boxes from layer to layer (DAB-DETR, section 4), and a
    norm for what the heads read.
    """

    EPS = 1e-3

    def __init__(self, layers: list[nn.Module], dim: int, bbox_embed: nn.ModuleList | None = None,
                 class_embed: nn.ModuleList | None = None, use_checkpoint: bool = False, detach_boxes: bool = False):
        super().__init__(layers, use_checkpoint=use_checkpoint, detach_boxes=detach_boxes)
        self.norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        self.num_feats = dim // 2
        # Last: saved optimizer states know the parameters by their order.
        self.bbox_embed, self.class_embed = bbox_embed, class_embed
        initialise_matrices(self.ref_point_head)

    def position(self, queries: Queries, level_reference: Tensor) -> Tensor:
        return self.ref_point_head(box_sine_embedding(level_reference[:, :, 0], self.num_feats))


def build_dino_decoder(options: Options, heads: Heads) -> DINODecoder:
    heads = per_layer("dino", heads)
    return DINODecoder(make_layers(options), options.transformer.hidden_dim, heads.bbox_embed, heads.class_embed,
                       options.transformer.deformable_use_checkpoint, options.decoder.use_detached_boxes_dec_out)
