import pytest
import torch
from torch import nn

from models.encoders.deformable import DeformableEncoder, DeformableEncoderLayer
from models.encoders.interleaved import CrossScaleLayer, InterleavedEncoder
from models.layers.deform_attn import KeyAwareDeformAttn
from util.errors import UserError

SHAPES = [(8, 8), (4, 4), (2, 2), (1, 1)]  # 64 + 16 + 4 + 1 tokens
DIM = 8


class Count(nn.Module):
    """Adds 1 to the tokens that it may update, and records its arguments."""

    def forward(self, tokens, pos, reference, memory, features):
        self.tokens, self.pos, self.reference, self.memory = tokens, pos, reference, memory
        return tokens + 1


def make_layers(kinds):
    torch.manual_seed(0)
    layers = [kind(KeyAwareDeformAttn(DIM, len(SHAPES), 2, 2), DIM, 16, 0.0, torch.relu) for kind in kinds]
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
    return layers


@pytest.mark.parametrize("enc_scale, low", [(1, 84), (2, 80), (3, 64), (4, 0)])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 6])
def test_tokens_that_each_layer_updates(make_features, enc_scale, low, num_blocks):
    encoder = InterleavedEncoder([Count() for _ in range(6)], num_blocks, enc_scale)
    features = make_features(SHAPES, DIM)
    updates = encoder(features).tokens - features.tokens
    torch.testing.assert_close(updates[:, :low], torch.full((1, low, DIM), float(num_blocks)))
    torch.testing.assert_close(updates[:, low:], torch.full((1, 85 - low, DIM), 6.0))

    block = 6 // num_blocks
    for i, layer in enumerate(encoder.layers):
        start = 0 if i % block == block - 1 else low
        ended = i // block  # blocks before this layer
        # Every layer sees all tokens: the low-level ones as the last block left them.
        torch.testing.assert_close(layer.memory[:, :low] - features.tokens[:, :low],
                                   torch.full((1, low, DIM), float(ended)))
        torch.testing.assert_close(layer.memory[:, low:] - features.tokens[:, low:],
                                   torch.full((1, 85 - low, DIM), float(i)))
        assert torch.equal(layer.tokens, layer.memory[:, start:])
        assert torch.equal(layer.pos, features.pos[:, start:])
        assert torch.equal(layer.reference, features.reference_points()[:, start:])


@pytest.mark.parametrize("finest_read, start", [(0, 0), (1, 64), (2, 80), (3, 84)])
def test_the_last_layer_updates_what_is_read(make_features, finest_read, start):
    encoder = InterleavedEncoder([Count() for _ in range(4)], 2, 2, finest_read=finest_read)  # 80 low-level tokens
    features = make_features(SHAPES, DIM)
    updates = (encoder(features).tokens - features.tokens)[0, :, 0]
    expected = torch.tensor([1.0 + (start <= token) if token < 80 else 3.0 + (start <= token) for token in range(85)])
    torch.testing.assert_close(updates, expected)


def test_low_level_tokens_wait_for_the_end_of_a_block(make_features):
    """With real layers: nothing but the last layer of the block touches them, to the bit."""
    layers = make_layers([DeformableEncoderLayer, DeformableEncoderLayer, CrossScaleLayer])
    features = make_features(SHAPES, DIM)
    memories = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: memories.append(args[3]))
    encoded = InterleavedEncoder(layers, 1, 3)(features).tokens
    assert all(torch.equal(memory[:, :64], features.tokens[:, :64]) for memory in memories)
    assert not torch.isclose(memories[1][:, 64:], memories[0][:, 64:]).all(-1).any()
    assert not torch.isclose(encoded, memories[2]).all(-1).any()


@pytest.mark.parametrize("num_low", [0, 64, 80])
def test_cross_scale_layer_uses_the_small_feed_forward_for_low_level_tokens(make_features, num_low):
    layer, = make_layers([CrossScaleLayer])
    features = make_features(SHAPES, DIM)
    updated = layer(features.tokens, features.pos, features.reference_points(), features.tokens, features, num_low)

    attended = layer.self_attn(features.tokens + features.pos, features.reference_points(), features.tokens, SHAPES)
    attended = layer.norm1(features.tokens + attended)
    low, high = attended[:, :num_low], attended[:, num_low:]
    low = layer.norm22(low + layer.linear22(layer.linear12(low).relu()))
    high = layer.norm2(high + layer.linear2(layer.linear1(high).relu()))
    torch.testing.assert_close(updated, torch.cat([low, high], 1))
    assert layer.linear12.weight.shape == layer.linear22.weight.shape == (DIM, DIM)


@pytest.mark.parametrize("finest_read, low", [(0, 80), (1, 16), (2, 0)])
def test_encoder_sends_exactly_the_low_level_tokens_through_the_small_feed_forward(make_features, finest_read, low):
    encoder = InterleavedEncoder(make_layers([DeformableEncoderLayer, CrossScaleLayer]), 1, 2, finest_read=finest_read)
    sizes = {}
    for name in ("linear12", "linear1"):
        encoder.layers[1].get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: sizes.update({name: args[0].shape[1]}))
    encoder(make_features(SHAPES, DIM))
    assert sizes == {"linear12": low, "linear1": 5}


@pytest.mark.parametrize("num_blocks, enc_scale", [(1, 4), (2, 4), (4, 1), (4, 2)])
def test_equals_the_deformable_encoder(make_features, num_blocks, enc_scale):
    """Where all levels are high-level, or every layer ends a block."""
    layers, features = make_layers([DeformableEncoderLayer] * 4), make_features(SHAPES, DIM)
    expected = DeformableEncoder(layers)(features).tokens
    torch.testing.assert_close(InterleavedEncoder(layers, num_blocks, enc_scale)(features).tokens, expected)


def test_differs_from_the_deformable_encoder(make_features):
    layers, features = make_layers([DeformableEncoderLayer] * 4), make_features(SHAPES, DIM)
    expected = DeformableEncoder(layers)(features).tokens
    assert not torch.allclose(InterleavedEncoder(layers, 2, 3)(features).tokens, expected)


def test_checkpointing(make_features):
    kinds, features, gradients = [DeformableEncoderLayer, CrossScaleLayer], make_features(SHAPES, DIM), []
    for recompute in (False, True):
        encoder = InterleavedEncoder(make_layers(kinds), 1, 3, use_checkpoint=recompute)
        calls = []
        encoder.layers[1].linear12.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        encoder(features).tokens.square().sum().backward()
        assert len(calls) == 1 + recompute
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("num_layers, num_blocks", [(6, 4), (6, 0), (6, -1), (1, 2)])
def test_blocks_of_unequal_length(num_layers, num_blocks):
    with pytest.raises(UserError, match=f"num_expansion={num_blocks} must divide enc_layers={num_layers}"):
        InterleavedEncoder([Count() for _ in range(num_layers)], num_blocks, 3)
