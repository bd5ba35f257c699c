import pytest
import torch
from torch import nn

from models.heads import LayerHeads, SharedHeads, by_suffix, each_layer, layer_predictions, split_queries
from models.layers.mlp import MLP
from models.structures import DecoderOutput

DIM, CLASSES, LAYERS = 8, 5, 3


def make_output(coordinates=4, eps=1e-3):
    hidden = [torch.randn(2, 6, DIM) for _ in range(LAYERS)]
    return DecoderOutput(hidden, [torch.rand(2, 6, coordinates) * 0.6 + 0.2 for _ in range(LAYERS)], eps)


@pytest.mark.parametrize("bbox", [True, False])
@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("encoder", [True, False])
def test_shared_or_separate(bbox, classes, encoder):
    heads = LayerHeads(DIM, CLASSES, LAYERS, bbox, classes, encoder, not encoder)
    assert len(set(heads.bbox_embed)) == (1 if bbox else LAYERS)
    assert len(set(heads.class_embed)) == (1 if classes else LAYERS)
    assert (heads.enc_out_bbox_embed in set(heads.bbox_embed)) is (encoder and bbox)
    assert (heads.enc_out_class_embed in set(heads.class_embed)) is (not encoder and classes)


def test_initial_values():
    """No class is likely and no box moves; small boxes are those of the first layer's head."""
    heads = LayerHeads(DIM, CLASSES, LAYERS, share_bbox=False, share_class=False)
    for head in [*heads.class_embed, heads.enc_out_class_embed]:
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((CLASSES,), 0.01))
    assert not any(head(torch.randn(4, DIM)).any() for head in heads.bbox_embed)
    heads.start_with_small_boxes()
    assert [head(torch.randn(DIM)).tolist() for head in heads.bbox_embed] == [[0, 0, -2, -2], [0] * 4, [0] * 4]


@pytest.mark.parametrize("focal", [True, False])
def test_heads_of_all_layers(focal):
    heads = SharedHeads(DIM, CLASSES, focal)
    assert isinstance(heads.bbox_embed, MLP) and heads.class_embed.out_features == CLASSES
    assert torch.allclose(heads.class_embed.bias.sigmoid(), torch.tensor(0.01)) is focal


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_predictions_relative_to_the_references(coordinates, shared):
    heads = LayerHeads(DIM, CLASSES, LAYERS, shared, shared)
    for head in heads.bbox_embed:
        nn.init.normal_(head.output.weight)
    decoded = make_output(coordinates)
    layers = each_layer(layer_predictions(decoded, heads.class_embed, heads.bbox_embed))
    assert len(layers) == LAYERS
    for i, layer in enumerate(layers):
        torch.testing.assert_close(layer["pred_logits"], heads.class_embed[i](decoded.hidden[i]))
        start = torch.zeros(2, 6, 4)
        start[..., :coordinates] = decoded.reference[i].logit()
        torch.testing.assert_close(layer["pred_boxes"], (start + heads.bbox_embed[i](decoded.hidden[i])).sigmoid())


def test_predictions_without_references():
    heads, hidden = SharedHeads(DIM, CLASSES, focal=True), make_output().hidden
    layers = each_layer(layer_predictions(DecoderOutput(hidden), heads.class_embed, heads.bbox_embed))
    for layer, state in zip(layers, hidden, strict=True):
        torch.testing.assert_close(layer["pred_boxes"], heads.bbox_embed(state).sigmoid())
        torch.testing.assert_close(layer["pred_logits"], heads.class_embed(state))


def test_the_inverse_sigmoid_is_the_decoders():
    heads = LayerHeads(DIM, CLASSES, 1)
    for eps in (1e-3, 1e-5):
        decoded = DecoderOutput([torch.zeros(1, 1, DIM)], [torch.zeros(1, 1, 4)], eps)
        layer, = each_layer(layer_predictions(decoded, heads.class_embed, heads.bbox_embed))
        torch.testing.assert_close(layer["pred_boxes"], torch.full((1, 1, 4), eps), rtol=1e-2, atol=0)


@pytest.mark.parametrize("last_only", [False, True])
def test_of_all_layers_or_the_last(last_only):
    heads, decoded = SharedHeads(DIM, CLASSES, focal=True), make_output()
    layers = layer_predictions(decoded, heads.class_embed, heads.bbox_embed, last_only)
    depth = 1 if last_only else LAYERS
    assert layers["pred_logits"].shape == (depth, 2, 6, CLASSES) and layers["pred_boxes"].shape == (depth, 2, 6, 4)
    torch.testing.assert_close(layers["pred_logits"][-1], heads.class_embed(decoded.hidden[-1]))


@pytest.mark.parametrize("count", [0, 2, 6, 9])
def test_split_queries(count):
    layers = {"pred_logits": torch.randn(2, 1, 6, 3), "pred_boxes": torch.rand(2, 1, 6, 4)}
    first, others = split_queries(layers, count)
    for name, whole in layers.items():
        assert first[name].shape[2] == min(count, 6)
        assert torch.equal(torch.cat([first[name], others[name]], 2), whole)


def test_suffixes_of_the_losses():
    layers = {"pred_logits": torch.randn(3, 1, 6, 2)}
    assert each_layer(layers)[1].keys() == layers.keys()
    of = {suffix: layer["pred_logits"] for suffix, layer in by_suffix(layers).items()}
    assert list(of) == ["_0", "_1", ""]
    assert all(torch.equal(found, wanted) for found, wanted in zip(of.values(), layers["pred_logits"], strict=True))
    assert list(by_suffix({"pred_logits": layers["pred_logits"][:1]})) == [""]
