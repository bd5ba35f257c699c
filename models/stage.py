"""One round of DETR's transformer over the tokens of some levels.

B batch, N tokens, Q queries, C channels.
"""
import torch
from torch import Tensor, nn

from models.structures import FlatFeatures, Queries


class Stage(nn.Module):
    """An encoder over the tokens of `levels`, and a decoder that reads what it returns; without an encoder the decoder
    reads the tokens as they are given.
    """

    def __init__(self, levels: list[int], encoder: nn.Module | None, decoder: nn.Module):
        super().__init__()
        self.levels = levels
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, features: FlatFeatures, query_pos: Tensor, content: Tensor | None = None,
                attn_mask: Tensor | None = None) -> list[Tensor]:
        """query_pos [Q, C] is the queries' learned embedding; content [B, Q, C] is zero unless given; attn_mask [Q, Q]
        is True where a query may not see another.

        Returns the hidden state [B, Q, C] after each decoder layer.
        """
        memory = features.select(self.levels)
        if self.encoder is not None:
            memory = self.encoder(memory)
        pos = query_pos.expand(memory.tokens.shape[0], -1, -1)
        content = torch.zeros_like(pos) if content is None else content
        return self.decoder(Queries(content, attn_mask=attn_mask, pos=pos), memory).hidden
