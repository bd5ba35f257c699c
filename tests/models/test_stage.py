import torch
from torch import nn

from models.stage import Stage
from models.structures import DecoderOutput

SHAPES = [(4, 6), (2, 3)]
DIM = 8


class Encoder(nn.Module):
    def forward(self, features):
        return features.with_tokens(features.tokens + 1)


class Decoder(nn.Module):
    """Returns its arguments."""

    def forward(self, queries, memory):
        return DecoderOutput([queries.content, queries.pos, memory])


def test_the_decoder_reads_the_encoded_levels(make_features):
    features = make_features(SHAPES, DIM, valid=[(2, 3), (1, 2)])
    query_pos = torch.randn(5, DIM)
    for levels, encoder, added in (([1], Encoder(), 1), ([0, 1], Encoder(), 1), ([0], None, 0)):
        content, positions, memory = Stage(levels, encoder, Decoder())(features, query_pos)
        expected = features.select(levels)
        assert torch.equal(memory.tokens, expected.tokens + added) and torch.equal(memory.padding, expected.padding)
        assert torch.equal(positions, query_pos.expand(2, -1, -1))
        assert content.shape == (2, 5, DIM) and not content.any()


def test_content_is_handed_on(make_features):
    content = torch.randn(1, 5, DIM)
    assert Stage([0], None, Decoder())(make_features(SHAPES, DIM), torch.zeros(5, DIM), content)[0] is content
