"""What the decoder of Deformable DETR adds to DINO's, which is tested beside it."""
import pytest
import torch
from torch import nn

from models.decoders.deformable import DeformableDecoder, DeformableDecoderLayer
from models.layers.deform_attn import MSDeformAttn
from models.structures import Queries

DIM, SHAPES = 8, [(4, 4), (2, 2)]


@pytest.fixture
def decoder():
    layers = [DeformableDecoderLayer(MSDeformAttn(DIM, len(SHAPES), 2, 2), DIM, 2, 16, 0.0, torch.relu)
              for _ in range(3)]
    return DeformableDecoder(layers)


def make_queries(coordinates):
    return Queries(torch.randn(1, 5, DIM), torch.randn(1, 5, coordinates), pos=torch.randn(1, 5, DIM))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_without_heads_all_layers_share_the_first_reference(decoder, make_features, coordinates):
    queries = make_queries(coordinates)
    queries.box_logits.requires_grad_()
    decoded = decoder(queries, make_features(SHAPES))
    assert len(decoded.hidden) == len(decoded.reference) == 3
    for reference in decoded.reference:
        torch.testing.assert_close(reference, queries.box_logits.sigmoid())
    decoded.reference[2].sum().backward()
    assert queries.box_logits.grad.abs().sum() > 0  # nothing is detached


def test_with_heads_points_become_boxes(decoder, make_features):
    decoder.bbox_embed = nn.ModuleList(nn.Linear(DIM, 4) for _ in range(3))
    queries = make_queries(2)
    decoded = decoder(queries, make_features(SHAPES))
    assert [reference.shape[-1] for reference in decoded.reference] == [2, 4, 4]
    delta = decoder.bbox_embed[0](decoded.hidden[0])
    expected = torch.cat([delta[..., :2] + queries.box_logits, delta[..., 2:]], -1).sigmoid()
    torch.testing.assert_close(decoded.reference[1], expected)


@pytest.mark.parametrize("detach", [True, False])
def test_looking_forward_twice_is_a_gradient_into_the_layer_before(decoder, make_features, detach):
    decoder.bbox_embed = nn.ModuleList(nn.Linear(DIM, 4) for _ in range(3))
    decoder.detach_boxes = detach
    decoded = decoder(make_queries(4), make_features(SHAPES))
    assert decoded.reference[1].requires_grad != detach


def test_positions_stay_those_of_the_queries(decoder, make_features):
    seen = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    queries = make_queries(2)
    decoder(queries, make_features(SHAPES))
    assert len(seen) == 3 and all(pos is queries.pos for pos in seen)
