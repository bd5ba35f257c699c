import math

import pytest
import torch
from torch import nn

from models.decoders.deformable import DeformableDecoderLayer
from models.decoders.dino import DINODecoder
from models.layers.deform_attn import MSDeformAttn
from models.layers.position_encoding import box_sine_embedding
from models.structures import Queries

SHAPES = [(4, 6), (2, 3)]
DIM = 8


class Record(nn.Module):
    """Adds 1 to the content and records its arguments."""

    def forward(self, *args):
        self.args = args
        return args[0] + 1


class Attention(nn.Module):
    def forward(self, *args):
        self.args = args
        return 3 * args[0]


def make_decoder(layers, **options):
    torch.manual_seed(0)
    return DINODecoder(layers, DIM, nn.ModuleList(nn.Linear(DIM, 4) for _ in layers), **options)


def make_layer():
    torch.manual_seed(0)
    return DeformableDecoderLayer(MSDeformAttn(DIM, len(SHAPES), 2, 2), DIM, 2, 16, 0.0, torch.relu)


def make_queries(batch=2, number=5):
    torch.manual_seed(1)
    return Queries(torch.randn(batch, number, DIM), torch.randn(batch, number, 4))


def test_boxes_are_refined_layer_by_layer(make_features):
    decoder, queries = make_decoder([Record() for _ in range(3)]), make_queries()
    memory = make_features(SHAPES, DIM, valid=[(2, 3), (1, 2)])
    out = decoder(queries, memory)
    assert len(out.hidden) == len(out.reference) == 3

    boxes = queries.box_logits.sigmoid()
    ratios = torch.tensor([[1.0, 1.0], [2 / 3, 0.5]])  # (width, height) of each image without padding
    for i, layer in enumerate(decoder.layers):
        content, pos, seen, given_memory, attn_mask = layer.args
        torch.testing.assert_close(out.reference[i], boxes)
        torch.testing.assert_close(content, queries.content + i)
        assert seen.shape == (2, 5, 2, 4)
        for level in range(2):
            torch.testing.assert_close(seen[:, :, level], boxes * ratios.repeat(1, 2)[:, None])
        torch.testing.assert_close(pos, decoder.ref_point_head(box_sine_embedding(seen[:, :, 0], DIM // 2)))
        assert given_memory is memory and attn_mask is None
        torch.testing.assert_close(out.hidden[i], queries.content + i + 1)
        boxes = (decoder.bbox_embed[i](queries.content + i + 1) + torch.logit(boxes)).sigmoid()


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_between_the_layers_boxes(make_features, detach):
    """Look forward twice: a layer's reference trains the head of the layer before it, and no earlier one."""
    decoder, queries = make_decoder([Record() for _ in range(3)], detach_boxes=detach), make_queries()
    queries.box_logits.requires_grad_()
    out = decoder(queries, make_features(SHAPES, DIM, valid=[SHAPES[-1]] * 2))
    assert all(layer.args[2].requires_grad is (i == 0) for i, layer in enumerate(decoder.layers))
    if detach:
        assert not out.reference[2].requires_grad
    else:
        out.reference[2].sum().backward()
        assert [head.weight.grad is not None for head in decoder.bbox_embed] == [False, True, False]
        assert queries.box_logits.grad is None


def test_attention_mask_reaches_every_layer(make_features):
    decoder, queries = make_decoder([Record(), Record()]), make_queries()
    queries.attn_mask = torch.eye(5, dtype=torch.bool)
    decoder(queries, make_features(SHAPES, DIM, valid=[SHAPES[-1]] * 2))
    masks = [layer.args[4] for layer in decoder.layers]
    assert masks[0] is masks[1]  # made additive once
    assert torch.equal(masks[0], torch.zeros(5, 5).masked_fill(queries.attn_mask, -torch.inf))


def test_layer(make_features):
    """Self-attention among queries, then deformable attention, then feed-forward; each with residual and norm."""
    torch.manual_seed(0)
    layer = DeformableDecoderLayer(Attention(), DIM, 2, 16, 0.0, torch.tanh)
    memory = make_features(SHAPES, DIM, valid=[(2, 3), (1, 2)])
    content, pos, reference = torch.randn(2, 5, DIM), torch.randn(2, 5, DIM), torch.rand(2, 5, 2, 4)
    updated = layer(content, pos, reference, memory)

    q, k, v = ((x @ w.T + b).unflatten(-1, (2, -1)).transpose(1, 2) for x, w, b in zip(
        (content + pos, content + pos, content), layer.self_attn.in_proj_weight.chunk(3),
        layer.self_attn.in_proj_bias.chunk(3), strict=True))
    attended = (q @ k.mT / math.sqrt(DIM // 2)).softmax(-1) @ v
    x = layer.norm2(content + layer.self_attn.out_proj(attended.transpose(1, 2).flatten(2)))
    x = layer.norm1(x + 3 * (x + pos))
    hidden = torch.tanh(x @ layer.linear1.weight.T + layer.linear1.bias)
    torch.testing.assert_close(updated, layer.norm3(x + layer.linear2(hidden)))
    assert layer.cross_attn.args[1:] == (reference, memory.tokens, SHAPES, memory.padding)


def test_masked_queries_do_not_see_each_other(make_features):
    layer, memory = make_layer().eval(), make_features(SHAPES, DIM)
    queries = make_queries(batch=1, number=4)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 1] = True  # 0 may not see 1
    pos, reference = torch.randn(1, 4, DIM), torch.rand(1, 4, 2, 4)
    changed = queries.content.clone()
    changed[:, 1] += 1
    before, after = (layer(content, pos, reference, memory, mask) for content in (queries.content, changed))
    assert torch.equal(after[:, 0], before[:, 0])
    assert not torch.isclose(after[:, 2:], before[:, 2:]).all(-1).any()


def test_checkpointing(make_features):
    gradients = []
    for recompute in (False, True):
        decoder = make_decoder([make_layer(), make_layer()], use_checkpoint=recompute)
        calls = []
        decoder.layers[0].linear1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        out = decoder(make_queries(), make_features(SHAPES, DIM, valid=[(2, 3), (1, 2)]))
        (out.hidden[-1].square().sum() + out.reference[-1].sum()).backward()
        assert len(calls) == 1 + recompute
        gradients.append({name: parameter.grad for name, parameter in decoder.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0])
