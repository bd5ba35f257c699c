import pytest
import torch

from models.attention_maps import as_map, record_attention


def outputs(model):
    torch.manual_seed(1)
    with torch.no_grad():
        return model([torch.randn(3, 96, 128)])


def record(model):
    with record_attention(model.eval()) as records:
        outputs(model)
    return records


def test_global_attention_of_a_stacked_model(build_sdetr):
    model = build_sdetr("sdetr_r50", enc_layers=[1, 2], dec_layers=[2, 1])[0]
    records = record(model)
    assert [r.part for r in records] == ["stages.0.encoder", *["stages.0.decoder"] * 2, *["stages.1.encoder"] * 2,
                                         "stages.1.decoder"]
    assert [r.in_encoder for r in records] == [True, False, False, True, True, False]
    assert [r.shapes for r in records] == [[(3, 4)]] * 3 + [[(6, 8)]] * 3
    assert [tuple(r.weights.shape) for r in records] == [
        (12, 8, 12), (10, 8, 12), (10, 8, 12), (48, 1, 48), (48, 1, 48), (10, 8, 48)]
    for r in records:
        torch.testing.assert_close(r.weights.sum(-1), torch.ones(r.weights.shape[:2]))


def test_the_weights_are_those_of_the_layer(build_sdetr):
    model = build_sdetr("detr_r50", enc_layers=1, dec_layers=1)[0]
    inputs = []
    attention = model.transformer.encoder.layers[0].self_attn
    hook = attention.register_forward_hook(lambda module, args, out: inputs.append(args))
    first, second = record(model)
    hook.remove()
    _, weights = attention(*inputs[0], average_attn_weights=False)
    torch.testing.assert_close(first.weights, weights[0].transpose(0, 1))
    assert second.part == "transformer.decoder"


@pytest.mark.parametrize("key_aware", [True, False])
def test_deformable_attention(build, key_aware):
    model = build(key_aware=key_aware)[0]  # two encoder layers, the first without the finest level's tokens
    records = record(model)
    assert [r.part for r in records] == ["transformer.encoder"] * 2 + ["transformer.decoder"] * 2
    assert [len(r.weights) for r in records] == [12 + 4, 48 + 12 + 4, 20, 20]
    for r in records:
        assert r.shapes == [(6, 8), (3, 4), (2, 2)]
        assert r.weights.shape[1:] == (2, 3, 2) and r.locations.shape == (*r.weights.shape, 2)
        torch.testing.assert_close(r.weights.sum((2, 3)), torch.ones(r.weights.shape[:2]))


def test_lite_sdetr_has_both(build_sdetr):
    records = record(build_sdetr("lite_sdetr_r50", dec_layers=1)[0])
    assert [r.part for r in records] == ["encoder"] * 6 + ["stages.0.decoder", "stages.1.decoder"]
    assert [r.locations is None for r in records] == [False] * 6 + [True] * 2


def test_recording_changes_nothing(build_sdetr):
    model = build_sdetr("lite_sdetr_r50")[0].eval()
    before = outputs(model)
    with record_attention(model) as records:
        during = outputs(model)
    count = len(records)
    after = outputs(model)
    torch.testing.assert_close(during["pred_boxes"], before["pred_boxes"])
    assert torch.equal(after["pred_boxes"], before["pred_boxes"]) and len(records) == count == 12


def test_the_encoders_can_be_left_out(build, build_sdetr):
    for model, parts in ((build(key_aware=True)[0], {"transformer.decoder"}),
                         (build_sdetr("lite_sdetr_r50")[0], {"stages.0.decoder", "stages.1.decoder"})):
        whole = record(model)
        with record_attention(model, encoders=False) as records:
            outputs(model)
        assert {r.part for r in records} == parts
        for mine, wanted in zip(records, [r for r in whole if not r.in_encoder], strict=True):
            assert mine.shapes == wanted.shapes and torch.equal(mine.weights, wanted.weights)


def test_weights_as_a_map():
    """The coarse tokens' weights are added to the fine ones that they cover."""
    weights = torch.tensor([1.0, 2, 3, 4, 10, 20])
    assert as_map(weights, [(2, 2), (1, 2)]).tolist() == [[11, 22], [13, 24]]
