import pytest
import torch
from torch import nn

from models.structures import FlatFeatures, Proposals
from models.transformer import DINOTransformer, token_anchors

SHAPES = [(8, 8), (4, 4), (2, 2)]
TOKENS, DIM, CLASSES = 84, 8, 3


def make_transformer(num_queries=10, embed_init_tgt=True):
    torch.manual_seed(0)
    return DINOTransformer(nn.Identity(), nn.Identity(), DIM, len(SHAPES), num_queries, embed_init_tgt,
                           nn.Linear(DIM, CLASSES), nn.Linear(DIM, 4))


def row_and_column(level, token):
    return divmod(token, SHAPES[level][1])


@pytest.mark.parametrize("valid", [[(2, 2)], [(2, 2), (1, 2), (1, 1)]])
def test_token_anchors(make_features, valid):
    features = make_features(SHAPES, DIM, valid=valid)
    anchors, unusable = token_anchors(features)
    usable = ~unusable
    assert anchors.shape == (len(valid), TOKENS, 4) and usable.shape == (len(valid), TOKENS, 1)
    for image, (rows, columns) in enumerate(valid):
        for level, start in enumerate(features.level_start[:-1]):
            height, width = rows * 2 ** (2 - level), columns * 2 ** (2 - level)
            for token in range(SHAPES[level][0] * SHAPES[level][1]):
                row, column = row_and_column(level, token)
                place = (image, start + token)
                if row < height and column < width:
                    side = 0.05 * 2**level
                    expected = torch.tensor([(column + 0.5) / width, (row + 0.5) / height, side, side])
                    assert usable[place]
                    torch.testing.assert_close(anchors[place].sigmoid(), expected)
                else:
                    assert not usable[place] and (anchors[place] == torch.inf).all()


def test_anchors_too_close_to_the_border_are_unusable(make_features):
    features = make_features([(1, 100)], DIM)
    anchors, unusable = token_anchors(features)
    usable = ~unusable
    assert usable[0, :, 0].tolist() == [False] + [True] * 98 + [False]
    assert (anchors[0, 0] == torch.inf).all()


def test_anchors_too_large_are_unusable(make_features):
    """On the sixth level a side would be 1.6 images."""
    anchors, unusable = token_anchors(make_features([(32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], DIM))
    usable = ~unusable
    assert usable[0, -5:, 0].tolist() == [True] * 4 + [False]
    assert not anchors.isnan().any()


def test_selection(make_features):
    """The tokens with the best class, in descending order, with their refined anchors."""
    transformer, memory = make_transformer(), make_features(SHAPES, DIM, valid=[(2, 2), (1, 2)])
    proposals = transformer.select(memory, 10)
    anchors, unusable = token_anchors(memory)
    usable = ~unusable
    content = transformer.enc_output_norm(transformer.enc_output(memory.tokens * usable))
    scores = transformer.enc_out_class_embed(content).max(-1).values
    for image in range(2):
        best = scores[image].argsort(descending=True, stable=True)[:10]
        torch.testing.assert_close(proposals.content[image], content[image, best])
        torch.testing.assert_close(proposals.box_logits[image],
                                   (transformer.enc_out_bbox_embed(content) + anchors)[image, best])


def test_padding_and_unusable_tokens_do_not_matter(make_features):
    transformer, memory = make_transformer(num_queries=TOKENS), make_features(SHAPES, DIM, valid=[(1, 2)])
    before = transformer.select(memory, TOKENS)
    after = transformer.select(memory.with_tokens(memory.tokens.masked_fill(memory.padding[..., None], 9.0)), TOKENS)
    assert torch.equal(before.content, after.content) and torch.equal(before.box_logits, after.box_logits)


@pytest.mark.parametrize("num_queries, selected", [(1, 1), (84, 84), (85, 84), (900, 84)])
@pytest.mark.parametrize("embed_init_tgt", [True, False])
def test_at_most_as_many_queries_as_tokens(make_features, num_queries, selected, embed_init_tgt):
    transformer = make_transformer(num_queries, embed_init_tgt)
    proposals = transformer.select(make_features(SHAPES, DIM, valid=[(2, 2), (1, 1)]), num_queries)
    queries = transformer.queries(proposals)
    assert queries.content.shape == (2, selected, DIM) and queries.box_logits.shape == (2, selected, 4)
    assert queries.attn_mask is None


def test_learned_queries():
    transformer = make_transformer()
    proposals = Proposals(torch.randn(2, 6, DIM), torch.randn(2, 6, 4, requires_grad=True))
    queries = transformer.queries(proposals)
    for image in range(2):
        assert torch.equal(queries.content[image], transformer.tgt_embed.weight[:6])
    assert queries.content.requires_grad
    assert torch.equal(queries.box_logits, proposals.box_logits) and not queries.box_logits.requires_grad


def test_queries_from_tokens():
    transformer = make_transformer(embed_init_tgt=False)
    assert transformer.tgt_embed is None
    proposals = Proposals(torch.randn(2, 6, DIM, requires_grad=True), torch.randn(2, 6, 4, requires_grad=True))
    queries = transformer.queries(proposals)
    assert torch.equal(queries.content, proposals.content) and not queries.content.requires_grad


@pytest.mark.parametrize("key_aware", [True, False])
@pytest.mark.parametrize("valid", [(1, 2), (2, 1), (1, 1)])
def test_padding_changes_neither_memory_nor_proposals(build, make_features, valid, key_aware):
    """The tokens of an image give the same alone as padded to a batch. (Not so before and after: the backbone's
    convolutions see the padding's edge, and the decoder encodes boxes in units of the padded image.)"""
    transformer = build(key_aware=key_aware)[0].eval().transformer
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        # Padding then has the score of the class bias, and real tokens are chosen before it.
        for bias in (transformer.enc_output.bias, transformer.enc_output_norm.bias):
            bias.zero_()
    rows, columns = valid
    padded = make_features(SHAPES, 32, valid=[valid])
    kept = ~padded.padding[0]
    shapes = [(rows * 2**i, columns * 2**i) for i in (2, 1, 0)]
    alone = FlatFeatures(padded.tokens[:, kept], padded.pos[:, kept], padded.padding[:, kept], shapes,
                         torch.ones_like(padded.valid_ratios))
    with torch.no_grad():
        memory, alone_memory = transformer.encoder(padded), transformer.encoder(alone)
        torch.testing.assert_close(memory.tokens[:, kept], alone_memory.tokens, atol=1e-5, rtol=1e-5)
        proposals, alone_proposals = (transformer.select(x, 10) for x in (memory, alone_memory))
        torch.testing.assert_close(proposals.box_logits, alone_proposals.box_logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(proposals.content, alone_proposals.content, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(memory.tokens[:, kept], padded.tokens[:, kept], atol=0.1)
