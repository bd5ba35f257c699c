"""The DINO decoder (DINO, section 3): box queries refined layer by layer.

B batch, Q queries, C channels, L levels.
"""
from torch import Tensor, nn

from models.decoders.deformable import DeformableDecoder
from models.layers.mlp import MLP
from models.layers.position_encoding import box_sine_embedding
from models.structures import Queries


class DINODecoder(DeformableDecoder):
    """The deformable decoder with positions that follow the boxes from layer to layer (DAB-DETR, section 4), and a
    norm for what the heads read.
    """

    EPS = 1e-3

    def __init__(self, layers: list[nn.Module], dim: int, use_checkpoint: bool = False, detach_boxes: bool = False):
        super().__init__(layers, use_checkpoint, detach_boxes)
        self.norm = nn.LayerNorm(dim)
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        self.num_feats = dim // 2

    def position(self, queries: Queries, seen: Tensor) -> Tensor:
        return self.ref_point_head(box_sine_embedding(seen[:, :, 0], self.num_feats))
