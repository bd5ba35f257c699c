import pytest
import torch
from torch import nn

from models.encoders.deformable import DeformableEncoder, DeformableEncoderLayer
from models.layers.deform_attn import MSDeformAttn

SHAPES = [(4, 6), (2, 3)]
DIM = 8


class Attention(nn.Module):
    """Records what it is given and answers with something simple."""

    def forward(self, *args):
        self.args = args
        return 2 * args[0]


def make_layer(dropout=0.0):
    torch.manual_seed(0)
    return DeformableEncoderLayer(MSDeformAttn(DIM, 2, 2, 2), DIM, 16, dropout, torch.relu)


def test_layer(make_features):
    layer = DeformableEncoderLayer(Attention(), DIM, 16, 0.0, torch.tanh)
    for norm in (layer.norm1, layer.norm2):
        nn.init.normal_(norm.weight)
    features = make_features(SHAPES, DIM, valid=[(2, 3), (1, 2)])
    memory, reference = features.tokens + 1, features.reference_points()
    updated = layer(features.tokens, features.pos, reference, memory, features)

    attended = layer.norm1(features.tokens + 2 * (features.tokens + features.pos))
    hidden = torch.tanh(attended @ layer.linear1.weight.T + layer.linear1.bias)
    expected = layer.norm2(attended + hidden @ layer.linear2.weight.T + layer.linear2.bias)
    torch.testing.assert_close(updated, expected)
    _, given_reference, given_memory, shapes, padding = layer.self_attn.args
    assert given_reference is reference and given_memory is memory
    assert shapes == SHAPES and padding is features.padding


def test_dropout_acts_in_training_only(make_features):
    layer, features = make_layer(dropout=0.5), make_features(SHAPES, DIM)
    args = features.tokens, features.pos, features.reference_points(), features.tokens, features
    assert not torch.equal(layer(*args), layer(*args))
    layer.eval()
    assert torch.equal(layer(*args), layer(*args))


def test_encoder_applies_its_layers_in_turn(make_features):
    layers, features = [make_layer(), make_layer()], make_features(SHAPES, DIM, valid=[(2, 3), (1, 2)])
    nn.init.normal_(layers[1].linear1.weight)
    tokens = features.tokens
    for layer in layers:
        tokens = layer(tokens, features.pos, features.reference_points(), tokens, features)
    encoded = DeformableEncoder(layers)(features)
    assert torch.equal(encoded.tokens, tokens)
    assert encoded.pos is features.pos and encoded.padding is features.padding and encoded.shapes == SHAPES


def test_no_layers(make_features):
    features = make_features(SHAPES, DIM)
    assert torch.equal(DeformableEncoder([])(features).tokens, features.tokens)


@pytest.mark.parametrize("training, grad, calls", [(True, True, 2), (False, True, 1), (True, False, 1)])
def test_checkpointing_recomputes_in_training(make_features, training, grad, calls):
    encoder = DeformableEncoder([make_layer()], use_checkpoint=True).train(training)
    count = []
    encoder.layers[0].linear1.register_forward_hook(lambda *_: count.append(1))
    with torch.set_grad_enabled(grad):
        tokens = encoder(make_features(SHAPES, DIM)).tokens
    if grad:
        tokens.sum().backward()
    assert len(count) == calls
