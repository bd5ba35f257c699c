import pytest
import torch
from torch import nn

from models.decoders.global_attention import GlobalDecoder, GlobalDecoderLayer
from models.structures import Queries
from util.errors import UserError

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
    hidden = decoder(Queries(content, pos=pos), memory).hidden
    assert len(hidden) == 3
    for layer, state in zip(decoder.layers, hidden):
        content = layer(content, pos, memory)  # the next layer starts from what is not normed yet
        torch.testing.assert_close(state, decoder.norm(content))


def test_padding_has_no_influence(make_features):
    decoder, memory = make_decoder(), make_features(SHAPES, DIM, [(1, 2)])
    other = memory.with_tokens(memory.tokens + 7 * memory.padding[..., None])
    content, pos = make_queries()
    queries = Queries(content, pos=pos)
    torch.testing.assert_close(decoder(queries, other).hidden, decoder(queries, memory).hidden)


def test_checkpointing(make_features):
    memory, results = make_features(SHAPES, DIM), []
    for recompute in (False, True):
        decoder, calls = make_decoder(use_checkpoint=recompute), []
        decoder.layers[1].linear1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        content, pos = make_queries()
        decoder(Queries(content, pos=pos), memory).hidden[-1].square().sum().backward()
        assert len(calls) == 1 + recompute
        results.append([parameter.grad for parameter in decoder.parameters()])
    torch.testing.assert_close(results[1], results[0])


def test_boxes_enter_every_layer_as_they_are(make_features):
    content, pos = make_queries()
    box_logits = torch.randn(1, 4, 4)
    decoded = make_decoder(2)(Queries(content, box_logits, pos=pos), make_features(SHAPES, DIM))
    assert [torch.equal(reference, box_logits.sigmoid()) for reference in decoded.reference] == [True, True]
    assert make_decoder(2)(Queries(content, pos=pos), make_features(SHAPES, DIM)).reference is None


def test_masked_queries_do_not_see_each_other(make_features):
    decoder, memory = make_decoder(1), make_features(SHAPES, DIM)
    content, pos = make_queries()
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 1] = True  # 0 may not see 1
    changed = content.clone()
    changed[:, 1] += 1
    before, after = (decoder(Queries(x, attn_mask=mask, pos=pos), memory).hidden[0] for x in (content, changed))
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert not torch.isclose(after[:, 2], before[:, 2]).all()


def test_queries_without_position_encodings(make_features):
    with pytest.raises(UserError, match="needs queries with pos"):
        make_decoder()(Queries(torch.randn(1, 4, DIM), torch.randn(1, 4, 4)), make_features(SHAPES, DIM))
