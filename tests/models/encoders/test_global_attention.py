import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.encoders.global_attention import GlobalEncoder, GlobalEncoderLayer

DIM = 8
SHAPES = [(2, 3)]
VALID = [(2, 3), (1, 2)]  # the second image has four padded tokens


def make_layers(count, pre_norm=False, heads=2, dropout=0.0):
    torch.manual_seed(0)
    layers = [GlobalEncoderLayer(DIM, heads, 16, dropout, torch.relu, pre_norm) for _ in range(count)]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
    return layers


def slow_attention(attention, query, key, value, padding):
    """Multi-head attention, head by head, as a formula."""
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    size = DIM // attention.num_heads
    heads = []
    for head in range(attention.num_heads):
        own = slice(head * size, (head + 1) * size)
        q, k, v = query @ wq[own].T + bq[own], key @ wk[own].T + bk[own], value @ wv[own].T + bv[own]
        logits = (q @ k.transpose(1, 2) / size**0.5).masked_fill(padding[:, None], -torch.inf)
        heads.append(logits.softmax(-1) @ v)
    return F.linear(torch.cat(heads, -1), attention.out_proj.weight, attention.out_proj.bias)


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_layer_is_the_formula(make_features, pre_norm, heads):
    layer, = make_layers(1, pre_norm, heads)
    features = make_features(SHAPES, DIM, VALID)
    x, pos = features.tokens, features.pos

    def feed_forward(x):
        return layer.linear2(layer.linear1(x).relu())

    if pre_norm:
        normed = layer.norm1(x)
        expected = x + slow_attention(layer.self_attn, normed + pos, normed + pos, normed, features.padding)
        expected = expected + feed_forward(layer.norm2(expected))
    else:
        expected = layer.norm1(x + slow_attention(layer.self_attn, x + pos, x + pos, x, features.padding))
        expected = layer.norm2(expected + feed_forward(expected))
    torch.testing.assert_close(layer(x, pos, features.padding), expected)


def test_encoder_runs_its_layers_and_its_norm(make_features):
    layers, features = make_layers(2), make_features(SHAPES, DIM, VALID)
    expected = features.tokens
    for layer in layers:
        expected = layer(expected, features.pos, features.padding)
    encoded = GlobalEncoder(layers)(features)
    torch.testing.assert_close(encoded.tokens, expected)
    assert encoded.pos is features.pos
    norm = nn.LayerNorm(DIM)
    torch.testing.assert_close(GlobalEncoder(layers, norm)(features).tokens, norm(expected))


def test_padding_has_no_influence(make_features):
    features = make_features(SHAPES, DIM, VALID)
    other = features.with_tokens(features.tokens + 7 * features.padding[..., None])
    encoder = GlobalEncoder(make_layers(2))
    seen = ~features.padding
    torch.testing.assert_close(encoder(features).tokens[seen], encoder(other).tokens[seen])


def test_checkpointing(make_features):
    features, gradients = make_features(SHAPES, DIM), []
    for recompute in (False, True):
        encoder, calls = GlobalEncoder(make_layers(2), use_checkpoint=recompute), []
        encoder.layers[0].linear1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        encoder(features).tokens.square().sum().backward()
        assert len(calls) == 1 + recompute
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_dropout_is_for_training(make_features):
    encoder, features = GlobalEncoder(make_layers(1, dropout=0.5)), make_features(SHAPES, DIM)
    assert not torch.equal(encoder(features).tokens, encoder(features).tokens)
    encoder.eval()
    assert torch.equal(encoder(features).tokens, encoder(features).tokens)
