import pytest
import torch
from torch import nn

from models.decoders.global_attention import GlobalDecoder, GlobalDecoderLayer

DIM = 8
SHAPES = [(2, 3)]


def make_decoder(count=2, pre_norm=False, **options):
    torch.manual_seed(0)
    layers = [GlobalDecoderLayer(DIM, 2, 16, 0.0, torch.relu, pre_norm) for _ in range(count)]
    decoder = GlobalDecoder(layers, nn.LayerNorm(DIM), **options)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder


def make_queries(batch=1):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, 4, DIM, generator=generator) for _ in range(2))  # content, position


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layer_is_the_formula(make_features, pre_norm):
    layer = make_decoder(pre_norm=pre_norm).layers[0]
    memory = make_features(SHAPES, DIM, [(2, 3), (1, 2)])
    content, pos = make_queries(2)

    def attend(x):
        return layer.self_attn(x + pos, x + pos, x)[0]

    def look(x):
        return layer.multihead_attn(x + pos, memory.tokens + memory.pos, memory.tokens,
                                    key_padding_mask=memory.padding)[0]

    def feed_forward(x):
        return layer.linear2(layer.linear1(x).relu())

    expected = content
    for norm, block in ((layer.norm1, attend), (layer.norm2, look), (layer.norm3, feed_forward)):
        expected = expected + block(norm(expected)) if pre_norm else norm(expected + block(expected))
    torch.testing.assert_close(layer(content, pos, memory), expected)


def test_one_normed_hidden_state_a_layer(make_features):
    decoder, memory = make_decoder(3), make_features(SHAPES, DIM)
    content, pos = make_queries()
    hidden = decoder(content, pos, memory)
    assert len(hidden) == 3
    for layer, state in zip(decoder.layers, hidden):
        content = layer(content, pos, memory)  # the next layer starts from what is not normed yet
        torch.testing.assert_close(state, decoder.norm(content))


def test_padding_has_no_influence(make_features):
    decoder, memory = make_decoder(), make_features(SHAPES, DIM, [(1, 2)])
    other = memory.with_tokens(memory.tokens + 7 * memory.padding[..., None])
    content, pos = make_queries()
    torch.testing.assert_close(decoder(content, pos, other), decoder(content, pos, memory))


def test_checkpointing(make_features):
    memory, results = make_features(SHAPES, DIM), []
    for recompute in (False, True):
        decoder, calls = make_decoder(use_checkpoint=recompute), []
        decoder.layers[1].linear1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        decoder(*make_queries(), memory)[-1].square().sum().backward()
        assert len(calls) == 1 + recompute
        results.append([parameter.grad for parameter in decoder.parameters()])
    torch.testing.assert_close(results[1], results[0])
