"""Multi-head attention (Vaswani et al., 2017).

B batch, Q queries, N keys, C channels, M heads, D = C / M channels per head.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.MultiheadAttention):
    """PyTorch's, batch first, with its parameters and results. Without weights to return, it needs about half as many
    operators: what several inputs share is projected at once, and heads are views."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__(dim, num_heads, dropout=dropout, batch_first=True)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """query [B, Q, C]; key and value [B, N, C]; key_padding_mask [B, N], True for keys that no query sees;
        attn_mask [Q, N], True where a query does not see a key, or what is added to its logit. Returns [B, Q, C], and
        the weights with need_weights; the other two are PyTorch's."""
        if need_weights or is_causal:
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
                                   is_causal)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in self._projected(query, key, value))
        mask = None if attn_mask is None else additive(attn_mask, query.dtype)
        if key_padding_mask is not None:
            unseen = additive(key_padding_mask, query.dtype)[:, None, None]
            mask = unseen if mask is None else mask + unseen
        attended = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        inputs = [query, key, value]
        last = [i for i in range(3) if i == 2 or inputs[i + 1] is not inputs[i]]  # of those that are one tensor
        counts = [after - before for before, after in zip([-1, *last], last)]
        sizes = [count * self.embed_dim for count in counts]
        projected = [F.linear(inputs[i], weight, bias) for i, weight, bias in
                     zip(last, self.in_proj_weight.split(sizes), self.in_proj_bias.split(sizes))]
        return [part for x, count in zip(projected, counts) for part in x.chunk(count, -1)]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits for a mask: minus infinity where it is True. One that is additive stays as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
