import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

from inference.predictor import Predictor
from inference.sampling import Inspected, forward_recorded, inspect
from models.attention_maps import Attended
from tests.inference.detectors import save_detector

IMAGE = Image.linear_gradient("L").resize((200, 120)).convert("RGB")


@pytest.fixture
def predictor(tiny_config, tiny_sdetr, tmp_path):
    """predictor(name, **options): of a tiny DINO, or of a small model of config/SDETR."""
    def open_one(name="dino", **options):
        config = {**tiny_config, **options} if name == "dino" else tiny_sdetr(name, **options)
        return Predictor(*save_detector(config, tmp_path / "model"))

    return open_one


def calls(module, run):
    """What run() gives to a module."""
    given = []
    hook = module.register_forward_hook(lambda module, args, output: given.append(args))
    run()
    hook.remove()
    (args,) = given
    return args


@pytest.mark.parametrize("key_aware", [True, False])
def test_points_and_weights_are_those_of_the_layer(predictor, key_aware):
    """In pixels of the image, which is wider than it is high."""
    backend = predictor(key_aware=key_aware).backend
    found = inspect(backend, IMAGE, 0.1)
    attention = backend.model.transformer.decoder.layers[1].cross_attn
    args = calls(attention, lambda: forward_recorded(backend, IMAGE))
    with torch.no_grad():
        locations, weights = attention.samples(*args)
    for detection in range(len(found.found["scores"])):
        query = int(found.found["queries"][detection])
        mine = found.attention(detection, 1)
        assert mine.shapes == args[3] and mine.points.shape == (2, 3, 2, 2)
        torch.testing.assert_close(mine.weights, weights[0, query])
        torch.testing.assert_close(mine.points, locations[0, query] * torch.tensor([200.0, 120.0]))
        torch.testing.assert_close(mine.weights.sum((1, 2)), torch.ones(2))
    assert len({tuple(layer.weights.shape) for layer in found.layers}) == 1 and found.layer_names() == ["1", "2"]


@pytest.mark.parametrize("options", [{}, {"num_select": 7}, {"nms_iou_threshold": 0.2}])
def test_the_query_is_the_one_whose_box_is_shown(predictor, options):
    """Also after the choice of the best pairs of query and class, and after NMS."""
    backend = predictor(**options).backend
    found = inspect(backend, IMAGE, 0.1).found
    outputs, _ = forward_recorded(backend, IMAGE)
    boxes = box_convert(outputs["pred_boxes"][0], "cxcywh", "xyxy") * torch.tensor([200.0, 120, 200, 120])
    scores = outputs["pred_logits"][0].sigmoid()
    assert len(found["scores"]) == options.get("num_select", len(found["scores"])) > 1
    torch.testing.assert_close(found["boxes"], boxes[found["queries"]])
    torch.testing.assert_close(found["scores"], scores[found["queries"], found["labels"]])


@pytest.mark.parametrize("name, options", [("dino", {}), ("dino", {"nms_iou_threshold": 0.2}), ("detr_r50", {}),
                                           ("sdetr_r50", {})])
def test_it_finds_what_the_predictor_finds(predictor, name, options):
    detector = predictor(name, **options)
    found, wanted = inspect(detector.backend, IMAGE, 0.1).found, detector(IMAGE, score=0.1)
    assert len(wanted) > 1
    for key in ("boxes", "scores", "labels"):
        torch.testing.assert_close(found[key], getattr(wanted, key), rtol=0, atol=0 if name == "dino" else 1e-3)


def test_the_score_is_a_limit(predictor):
    backend = predictor().backend
    scores = inspect(backend, IMAGE, 0.0).found["scores"]
    limited = inspect(backend, IMAGE, float(scores[3]))
    assert torch.equal(limited.found["scores"], scores[:4])
    assert [len(layer.weights) for layer in limited.layers] == [4, 4]
    assert [len(layer.weights) for layer in inspect(backend, IMAGE, 1.0).layers] == [0, 0]


def test_global_attention_is_a_map_of_each_stage(predictor):
    found = inspect(predictor("sdetr_r50", enc_layers=[1, 2], dec_layers=[2, 1]).backend, IMAGE, 0.0)
    assert found.layer_names() == ["1.1", "1.2", "2.1"]
    for layer in range(3):
        attention = found.attention(0, layer)
        assert attention.points is None
        torch.testing.assert_close(attention.weights.sum(-1), torch.ones(len(attention.weights)))
        heat = attention.heat_map([0])
        assert tuple(heat.shape) == attention.shapes[0]
        torch.testing.assert_close(heat.flatten(), attention.weights[0])


def test_layers_of_one_decoder_are_counted():
    layers = [Attended("transformer.decoder", [(1, 1)], torch.ones(1, 1, 1))] * 3
    assert Inspected({}, (1, 1), layers).layer_names() == ["1", "2", "3"]


def test_half_precision_is_recorded_in_float32(tiny_config, tmp_path):
    detector = Predictor(*save_detector(tiny_config, tmp_path / "model"), amp=True)
    found = inspect(detector.backend, IMAGE, 0.1)
    assert detector.backend.model.half_dtype is not None
    assert {layer.weights.dtype for layer in found.layers} == {layer.locations.dtype for layer in found.layers} == {
        torch.float32}
    torch.testing.assert_close(found.found["boxes"], detector(IMAGE, score=0.1).boxes, rtol=0, atol=0)
