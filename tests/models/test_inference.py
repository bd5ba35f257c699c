"""Detectors made ready for detection alone find what they found before, with fewer operators."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models import build_model
from models.inference import for_inference, to_half
from models.layers.frozen_batch_norm import FrozenBatchNorm2d
from models.layers.normed_conv import fold_batch_norms
from tests.inference.detectors import CONFIGS
from util.config import load_config


@pytest.fixture
def model(tiny_config):
    """With batch norms that do something."""
    model = build_model(tiny_config)[0].eval().requires_grad_(False)
    for norm in (module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)):
        for buffer in norm.buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_coordinates_and_scores_in_float32(model, dtype):
    half = copy.deepcopy(model)
    fold_batch_norms(half.backbone[0])
    to_half(half, dtype)
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    heads = [name for name in kinds if "class_embed" in name or "bbox_embed" in name]
    assert heads and all(kinds.pop(name) == torch.float32 for name in heads)
    assert set(kinds.values()) == {dtype}
    seen = {}
    for name, module in half.named_modules():
        if name.endswith(("sampling_offsets", "attention_weights", "linear1", "class_embed.0", "bbox_embed.0")):
            module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.dtype}))
    images = torch.rand(1, 3, 96, 96)
    found = half(images.to(dtype))
    for name, kind in seen.items():
        assert kind == (torch.float32 if name.endswith(("attention_weights", "embed.0")) else dtype), name
    assert {"sampling_offsets", "linear1", "0"} <= {name.rpartition(".")[2] for name in seen}
    assert found["pred_logits"].dtype == found["pred_boxes"].dtype == torch.float32
    assert F.mse_loss(found["pred_logits"], model(images)["pred_logits"]) < 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_a_prepared_detector_finds_the_same(tiny_dino, tiny_sdetr, name):
    torch.manual_seed(0)
    model = build_model(CONFIGS[name](tiny_dino, tiny_sdetr))[0].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    ready = for_inference(model)
    images = [torch.rand(3, 96, 128), torch.rand(3, 96, 100)]
    with torch.no_grad():
        wanted, found, again = model(images), ready(images), for_inference(ready)(images)
        fused = for_inference(model, device=torch.device("cpu"))(images)
    assert set(found) == {"pred_logits", "pred_boxes"} and "aux_outputs" in wanted
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=0, atol=1e-5 * float(wanted[key].abs().max()))
        assert torch.equal(again[key], value)
        torch.testing.assert_close(fused[key], wanted[key], rtol=0, atol=1e-5 * float(wanted[key].abs().max()))
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


HALF = ["resnet18", "swin_T_224_1k", "timm:convnext_atto", "timm:tf_efficientnet_lite0"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name, backbone", [*((name, "resnet18") for name in CONFIGS),
                                            *(("lite_dino", backbone) for backbone in HALF[1:])])
def test_half_precision_finds_nearly_the_same(tiny_dino, tiny_sdetr, name, backbone, dtype):
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    # Every token is a query: which ones are chosen would depend on small differences.
    config = {**CONFIGS[name](tiny_dino, tiny_sdetr), "backbone": backbone, "num_queries": 300}
    model = build_model(config)[0].eval()
    images = [torch.rand(3, 96, 128)]
    with torch.no_grad():
        wanted, found = model(images), for_inference(model, dtype)(images)
    for key, value in found.items():
        assert value.dtype == torch.float32
        value, expected = (x.flatten(1).sort().values for x in (value, wanted[key]))  # their order may change
        torch.testing.assert_close(value, expected, rtol=0, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["lite_dino", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "h_detr", "deformable_detr", "detr", "sdetr", "lite_sdetr"))])
def test_a_compiled_detector_is_one_graph(tiny_dino, tiny_sdetr, name):
    torch.compiler.reset()
    model = for_inference(build_model(CONFIGS[name](tiny_dino, tiny_sdetr))[0])
    images, graphs = torch.rand(1, 3, 64, 96), []

    def note(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        found = torch.compile(model, backend=note, fullgraph=True)(images)
        assert len(graphs) == 1
        for key, value in model(images).items():
            torch.testing.assert_close(found[key], value)
    torch.compiler.reset()


# What gives a tensor another shape or type on the host, and computes nothing.
VIEWS = {"view", "_unsafe_view", "unsqueeze", "t", "transpose", "permute", "slice", "select", "split",
         "split_with_sizes", "unbind", "expand", "alias", "detach", "empty", "promote_types"}


class Computing(TorchDispatchMode):
    """Counts the operators that are called, but for VIEWS."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*args, **(kwargs or {}))


def test_a_forward_pass_calls_few_operators():
    """Among them are 138 linear layers and, with the ResNet, 57 convolutions, 84 ReLUs and 39 norms."""
    model = build_model(load_config("config/LiteDINO/r50_h3l1_2p1x3.py", {"pretrained_backbone": False}))[0].eval()
    counts = []
    with torch.no_grad():
        for ready in (model, for_inference(model), for_inference(model, device=torch.device("cpu"))):
            ready([torch.rand(3, 256, 320)])
            image = [torch.rand(3, 256, 320)]
            with Computing() as calls:
                ready(image)
            counts.append(calls.count)
    assert counts[0] <= 560 and counts[1] <= 500 and counts[2] <= 440, counts
