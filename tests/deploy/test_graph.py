import dataclasses

import pytest
import torch

from datasets.transforms import MEAN, STD
from deploy.graph import DetectionGraph, example_inputs, trace
from models import build_model
from tests.inference.detectors import CONFIGS, spread_scores
from tests.inference.test_artifact import artifact

IMAGES = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(3))
SIZES = torch.tensor([[640, 480], [300, 200]])


def build(config):
    """A detector in evaluation mode and its post-processor; its batch norms are the identity."""
    torch.manual_seed(0)
    model, _, postprocessors = build_model(config)
    spread_scores(model)
    return model.eval(), postprocessors["bbox"]


def detections(model, postprocess, images=IMAGES):
    """As an evaluation makes them, for images in [0, 1]."""
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        return postprocess(model(normalised), SIZES.flip(1))


def assert_same(graph, wanted, images=IMAGES, tolerance=1e-3):
    with torch.no_grad():
        labels, boxes, scores = graph(images, SIZES)
    assert labels.dtype == torch.int64 and boxes.shape == (*scores.shape, 4)
    for i, expected in enumerate(wanted):
        torch.testing.assert_close(scores[i], expected["scores"], rtol=0, atol=1e-5)
        sure = expected["scores"].diff().abs() > 1e-5  # the order of others may change
        sure = torch.cat([sure, sure[:1]]) & torch.cat([sure[:1], sure])
        assert torch.equal(labels[i][sure], expected["labels"][sure])
        torch.testing.assert_close(boxes[i][sure], expected["boxes"][sure], rtol=0, atol=tolerance * 640)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_is_the_detector_with_what_is_around_it(tiny_dino, tiny_sdetr, name):
    model, postprocess = build(CONFIGS[name](tiny_dino, tiny_sdetr))
    assert_same(DetectionGraph(model, postprocess), detections(model, postprocess))


def test_images_of_8_bits_are_the_same_images(tiny_config):
    model, postprocess = build(tiny_config)
    pixels = (IMAGES * 255).to(torch.uint8)
    assert_same(DetectionGraph(model, postprocess), detections(model, postprocess, pixels / 255), pixels)


def test_nms_is_left_to_the_reader_and_the_model_as_it_was(tiny_config):
    model, postprocess = build(tiny_config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = DetectionGraph(model, dataclasses.replace(postprocess, nms_iou_threshold=0.1), torch.float16)
    assert graph(IMAGES, SIZES)[2].shape == (2, 20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name, dtype", [("lite_dino", torch.float16), ("deformable_detr", torch.bfloat16),
                                         ("h_detr", torch.bfloat16), ("lite_sdetr", torch.bfloat16)])
def test_half_precision_finds_nearly_the_same_scores(tiny_dino, tiny_sdetr, name, dtype):
    model, postprocess = build(CONFIGS[name](tiny_dino, tiny_sdetr))
    wanted = detections(model, postprocess)
    with torch.no_grad():
        labels, boxes, scores = DetectionGraph(model, postprocess, dtype)(IMAGES, SIZES)
    assert boxes.dtype == scores.dtype == torch.float32
    for i, expected in enumerate(wanted):
        torch.testing.assert_close(scores[i].sort().values, expected["scores"].sort().values, rtol=0, atol=0.03)


def test_examples_are_what_the_artifact_takes():
    images, sizes = example_inputs(artifact(size=(32, 48), batch=3, uint8=True))
    assert images.shape == (3, 3, 32, 48) and images.dtype == torch.uint8 and sizes.shape == (3, 2)
    images, sizes = example_inputs(artifact(batch=None))
    assert images.shape[2] != images.shape[3] and len(images) == len(sizes) > 1 and images.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.soak
def test_a_trace_for_any_size_of_a_backbone_with_same_padding(tiny_dino):
    """One pixel more moves where such a backbone pads."""
    model, postprocess = build(tiny_dino(backbone="timm:tf_efficientnet_lite0"))
    how = artifact(size=None, batch=None, sampler="gather", uint8=False)
    traced = trace(DetectionGraph(model, postprocess), how).module(check_guards=False)
    for height, width in ((95, 128), (96, 127), (97, 129), (110, 84)):
        images = torch.rand(len(SIZES), 3, height, width)
        assert_same(traced, detections(model, postprocess, images), images)
