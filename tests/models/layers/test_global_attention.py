"""What encoder and decoder layers of global attention share."""
import pytest
import torch

from models.layers.global_attention import GlobalAttentionLayer


def make(pre_norm):
    torch.manual_seed(0)
    return GlobalAttentionLayer(8, 2, 16, 0.0, torch.relu, pre_norm).eval()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_norm_is_before_the_block_or_after_the_residual(pre_norm):
    layer, x = make(pre_norm), torch.randn(2, 5, 8)
    found = layer._residual(x, layer.norm1, lambda y: 3 * y)
    wanted = x + 3 * layer.norm1(x) if pre_norm else layer.norm1(4 * x)
    torch.testing.assert_close(found, wanted)


def test_tokens_do_not_attend_to_padding():
    layer, x, pos = make(False), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[:, 3:] = True
    found = layer._attend_self(x, pos, padding)
    torch.testing.assert_close(found[:, :3], layer._attend_self(x[:, :3], pos[:, :3]))


def test_positions_are_in_queries_and_keys_and_not_in_values():
    layer, x, pos = make(False), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    wanted = layer.self_attn(x + pos, x + pos, x, need_weights=False)[0]
    torch.testing.assert_close(layer._attend_self(x, pos), wanted)
