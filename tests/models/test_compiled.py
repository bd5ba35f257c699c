import pytest
import torch
from torch._dynamo.utils import counters

from models import build_model
from models.compiled import CompiledDetector, padded_to_steps
from models.inference import for_inference
from util.errors import UserError
from util.nested_tensor import NestedTensor

SIZES = [(128, 192), (150, 130), (256, 130), (120, 180), (200, 400)]  # for smaller maps torch chooses other kernels


@pytest.fixture(scope="module")
def detector(tiny_dino):
    torch.manual_seed(0)
    return for_inference(build_model(tiny_dino(return_interm_indices=[1], num_feature_levels=2))[0])


def noise(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


def test_sides_become_multiples_and_the_mask_says_what_is_image():
    samples = padded_to_steps(torch.ones(2, 3, 65, 128))
    assert samples.tensors.shape == (2, 3, 128, 128) and samples.mask.shape == (2, 128, 128)
    assert torch.equal(samples.tensors[:, 0] == 1, ~samples.mask) and (~samples.mask).sum() == 2 * 65 * 128
    assert not padded_to_steps(torch.ones(1, 3, 64, 64)).mask.any()
    samples = padded_to_steps([torch.ones(3, 65, 128), torch.ones(3, 30, 20)])
    assert samples.tensors.shape == (2, 3, 128, 128)
    assert torch.equal(samples.tensors[:, 0] == 1, ~samples.mask)
    assert (~samples.mask).sum((1, 2)).tolist() == [65 * 128, 30 * 20]


def test_a_backend_that_torch_does_not_have(detector):
    with pytest.raises(UserError, match="inductor"):
        CompiledDetector(detector, backend="inducter")


@torch.inference_mode()
def test_it_finds_what_the_detector_finds_and_all_sizes_are_one_graph(detector):
    torch.compiler.reset()
    counters.clear()
    compiled = CompiledDetector(detector, backend="eager")
    for size in SIZES:
        images = noise(*size)
        found, padded = compiled(images), padded_to_steps(images)
        expected = detector(NestedTensor(padded.tensors, padded.mask))
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert len(compiled) == 0  # a CPU records nothing


def test_a_recording_is_made_once_for_each_size_and_the_oldest_go(detector):
    made, replayed = [], []

    def record(run, images, mask):
        made.append(tuple(images.shape[-2:]))
        return lambda images, mask: replayed.append(tuple(images.shape[-2:])) or {}

    compiled = CompiledDetector(detector, backend="eager", most=2, record=record)
    for height, width in [(60, 60), (64, 64), (64, 100), (10, 64), (64, 200), (64, 64), (64, 200), (64, 128)]:
        compiled(noise(height, width))
        assert len(compiled) <= 2
    assert made == [(64, 64), (64, 128), (64, 256), (64, 128)]
    assert replayed == [(64, 64), (64, 64), (64, 128), (64, 64), (64, 256), (64, 64), (64, 256), (64, 128)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_on_a_gpu_recordings_find_what_the_detector_finds(detector):
    detector = detector.cuda()
    compiled = CompiledDetector(detector)
    kept = []
    for size in SIZES:
        images = noise(*size).cuda()
        padded = padded_to_steps(images)
        kept.append((compiled(images), detector(padded)))
    assert len(compiled) == 4  # the fourth is padded to the first one's size
    for found, expected in kept:  # what was found stays as it was
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)
