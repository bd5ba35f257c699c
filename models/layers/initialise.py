"""Initial values of a transformer's parameters."""
from torch import nn

from models.layers.deform_attn import DeformableAttention


def initialise_matrices(module: nn.Module) -> None:
    """Xavier for every matrix (DETR, appendix A.4); deformable attention has initial values of its own."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.reset_parameters()
