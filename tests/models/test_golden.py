"""The models compute what the published code computed, in float64, with weights drawn from their published names."""
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models import build_model
from tests.golden import recipe
from util.checkpoint import load_weights, our_name
from util.config import load_config

FOLDER = Path(__file__).parents[1] / "golden"
LITE, NO_DROPOUT = "DINO/DINO_4scale", {"dropout": 0.0}
GOLDENS = {  # config and options
    "lite_dino_r50_h3l1_2p1x3": (LITE, {"num_expansion": 3, "enc_scale": 3}),
    "lite_dino_r50_h3l1_6p1x1": (LITE, {"num_expansion": 1, "enc_scale": 3}),
    "lite_dino_r50_h2l2_2p1x3": (LITE, {"num_expansion": 3, "enc_scale": 2}),
    "lite_dino_r50_h3l1_2p1x3_msda": (LITE, {"num_expansion": 3, "enc_scale": 3, "key_aware": False}),
    "lite_dino_swint_h3l1_2p1x3": ("LiteDINO/swint_h3l1_2p1x3", {}),
    "dino_4scale_r50": ("DINO/baseline_4scale", {}),
    "deformable_detr_r50": ("DeformableDETR/r50", NO_DROPOUT),
    "deformable_detr_r50_two_stage": ("DeformableDETR/r50_two_stage", NO_DROPOUT),
    "h_deformable_detr_r50_two_stage": ("DeformableDETR/h_r50_two_stage", NO_DROPOUT),
    "sdetr_r50": ("SDETR/sdetr_r50", NO_DROPOUT),
    "detr_r50": ("SDETR/detr_r50", NO_DROPOUT),
}
# The published plain attention carries a query_proj that it never uses; ours has none.
PARAMETERS = {"lite_dino_r50_h3l1_2p1x3_msda": 47289470}
TRAINED = ["lite_dino_r50_h3l1_2p1x3", "dino_4scale_r50", "deformable_detr_r50",
           "deformable_detr_r50_two_stage", "sdetr_r50", "detr_r50"]
# Seconds each, at the published size: make test compares one of two maps and one of tokens of all levels.
QUICK = ["lite_dino_r50_h3l1_2p1x3", "sdetr_r50"]
QUICK_TO_TRAIN = ["sdetr_r50"]
IMAGE_SIZES = torch.tensor([[480, 640], [427, 640]])
TOLERANCE = 1e-4


class Golden:
    """A recorded result, and the model that should give it."""

    def __init__(self, name, draw):
        self.name = name
        self.meta = json.loads((FOLDER / f"{name}.json").read_text())
        self.recorded = np.load(FOLDER / f"{name}.npz")
        config, options = GOLDENS[name]
        # Recomputed activations halve the memory of the training step.
        config = load_config(f"config/{config}.py", {
            "pretrained_backbone": False, "dn_box_noise_scale": 0.0, "dn_label_noise_ratio": 0.0,
            "deformable_use_checkpoint": True, **options})
        self.model, self.criterion, post = build_model(config)
        self.postprocess = post["bbox"]
        self.model.double()
        weights = {key: draw(key, tuple(shape), self.meta["salt"]) for key, shape in self.meta["state_dict"].items()
                   if not key.endswith("num_batches_tracked")}
        load_weights(self.model, {"model": weights}, strict=True)
        self.images = recipe.images(self.meta["sizes"], self.meta["salt"])
        self.targets = recipe.targets(self.meta["counts"], self.meta["num_classes"], self.meta["salt"])

    @functools.cached_property
    def outputs(self):
        return self.detect("cpu")

    def detect(self, device):
        self.model.eval().to(device)
        with torch.no_grad():
            return self.model([image.to(device) for image in self.images])

    def compare(self, ours, prefix):
        """ours: the tensors of every recorded array with this prefix, and no others."""
        assert set(ours) == {name for name in self.recorded.files if name.startswith(prefix)}
        for name, tensor in ours.items():
            expected = self.recorded[name].astype(np.float64)
            assert tensor.shape == expected.shape, name
            error = np.abs(tensor.double().cpu().numpy() - expected).max() / np.abs(expected).max()
            assert error <= TOLERANCE, name


@pytest.fixture(scope="module")
def draw():
    """Weights by key, drawn once for all models."""
    return functools.cache(lambda key, shape, salt: torch.from_numpy(recipe.draw(key, shape, salt)))


@pytest.fixture(scope="module")
def golden(request, draw):
    return Golden(request.param, draw)



def parametrize(names, quick):
    return pytest.mark.parametrize("golden", [
        pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names], indirect=True)


every_golden = parametrize(GOLDENS, QUICK)


@every_golden
def test_parameter_count(golden):
    count = sum(parameter.numel() for parameter in golden.model.parameters())
    assert count == PARAMETERS.get(golden.name, golden.meta["parameters"])


def recorded_outputs(outputs):
    recorded = {f"eval/{name}": outputs[name] for name in ("pred_logits", "pred_boxes")}
    recorded |= {f"eval/interm/{name}": x for name, x in outputs.get("interm_outputs", {}).items()}
    return recorded | {f"eval/aux{i}/pred_boxes": aux["pred_boxes"] for i, aux in enumerate(outputs["aux_outputs"])}


@every_golden
def test_outputs(golden):
    golden.compare(recorded_outputs(golden.outputs), "eval/")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_golden
def test_cuda_outputs(golden):
    ours = golden.detect("cuda")
    golden.model.cpu()
    golden.compare(recorded_outputs(ours), "eval/")


@every_golden
def test_detections(golden):
    results = golden.postprocess(golden.outputs, IMAGE_SIZES)
    golden.compare({f"post{i}/{name}": x for i, result in enumerate(results) for name, x in result.items()}, "post")


@parametrize(TRAINED, QUICK_TO_TRAIN)
def test_losses_and_gradients(golden):
    model, criterion, recorded = golden.model.train(), golden.criterion, golden.meta["losses"]
    losses = criterion(model(golden.images, golden.targets), golden.targets)
    total = sum(weight * losses[name] for name, weight in criterion.weight_dict.items())
    total.backward()

    # The published one-stage form has weights for losses that it does not have.
    assert criterion.weight_dict == {name: w for name, w in golden.meta["weight_dict"].items() if name in recorded}
    compared = losses.keys() & recorded.keys()
    assert {*criterion.weight_dict, "class_error"} <= compared
    assert {name: losses[name].item() for name in compared} == {
        name: pytest.approx(recorded[name], rel=TOLERANCE) for name in compared}
    assert total.item() == pytest.approx(recorded["TOTAL"], rel=TOLERANCE)

    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.requires_grad}
    expected = {our_name(name): norm for name, norm in golden.meta["grad_norms"].items()}
    smallest = 1e-3 * max(expected.values())  # relative errors of smaller norms are rounding
    assert norms == {name: pytest.approx(expected[name], rel=TOLERANCE, abs=TOLERANCE * smallest) for name in norms}
    unused = {name for name in expected if name not in norms}
    assert all("query_proj" in name and expected[name] == 0 for name in unused)
