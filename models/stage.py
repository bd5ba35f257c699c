"""One round of DETR's transformer over the tokens of some levels.

B batch, N tokens, Q queries, C channels.
"""
import torch
from torch import Tensor, nn

from models.layers.initialise import initialise_transformer
from models.structures import FlatFeatures


class Stage(nn.Module):
    """An encoder over the tokens of `levels`, and a decoder that reads them; without an encoder, as they come."""

    def __init__(self, levels: list[int], encoder: nn.Module | None, decoder: nn.Module):
        super().__init__()
        self.levels = levels
        self.encoder = encoder
        self.decoder = decoder
        initialise_transformer(self)

    def forward(self, features: FlatFeatures, query_pos: Tensor, content: Tensor | None = None) -> list[Tensor]:
        """query_pos [Q, C] is the queries' learned embedding; content [B, Q, C] starts at zero unless given.

        Returns the hidden state [B, Q, C] after each decoder layer.
        """
        memory = features.select(self.levels)
        if self.encoder is not None:
            memory = self.encoder(memory)
        query_pos = query_pos.expand(len(memory.tokens), -1, -1)
        return self.decoder(torch.zeros_like(query_pos) if content is None else content, query_pos, memory)
