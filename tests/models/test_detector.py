import pytest
import torch

from models import MODELS, compile_parts
from models.detector import Detector
from models.structures import DecoderOutput
from util.nested_tensor import NestedTensor

FAMILY = ["dino", "deformable_detr", "deformable_detr two-stage", "detr_r50", "sdetr_r50", "lite_sdetr_r50"]


@pytest.fixture(params=FAMILY)
def detector(request, build, build_deformable, build_sdetr):
    """Each detector, small."""
    if request.param == "dino":
        return build()[0].eval()
    if request.param.startswith("deformable_detr"):
        two_stage = request.param.endswith("two-stage")
        return build_deformable(with_box_refine=two_stage, two_stage=two_stage)[0].eval()
    return build_sdetr(request.param)[0].eval()


def test_every_model_is_a_detector(detector):
    assert isinstance(detector, Detector) and set(MODELS) == {"dino", "deformable_detr", "detr", "sdetr", "lite_sdetr"}


def test_images_of_any_form(detector):
    """A list, a batch of one size, and a NestedTensor give the same outputs, and the last layer is not repeated."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        listed, batch, nested = detector(list(images)), detector(images), detector(NestedTensor.from_list(images))
    for name in ("pred_logits", "pred_boxes"):
        assert torch.equal(listed[name], batch[name]) and torch.equal(listed[name], nested[name])
    assert all(set(layer) == {"pred_logits", "pred_boxes"} for layer in listed["aux_outputs"])


def test_parts_name_modules_in_the_order_of_the_image(detector):
    parts = detector.parts()
    assert list(parts)[:2] == ["backbone", "input projection"] and list(parts)[-1] == "heads"
    for paths in parts.values():
        for path in paths:
            detector.get_submodule(path)
    named = [path for paths in parts.values() for path in paths]
    rest = {name.split(".")[0] for name, _ in detector.named_parameters()} - {path.split(".")[0] for path in named}
    assert rest <= {"label_enc", "query_embed", "level_embed"}


def test_compiled_parts(detector, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options)))
    compile_parts(detector, "eager")
    names = {id(module): name for name, module in detector.named_modules()}
    assert all(options == {"dynamic": True, "backend": "eager"} for _, options in compiled)
    assert {names[id(module)].split(".")[-1] for module, _ in compiled} == {"0", "encoder", "decoder"}


@pytest.mark.parametrize("aux_loss, layers", [(True, 3), (False, 1)])
def test_auxiliary_outputs(build_sdetr, aux_loss, layers):
    model = build_sdetr("detr_r50", aux_loss=aux_loss)[0]
    decoded = DecoderOutput([torch.randn(1, 2, 32) for _ in range(3)])
    predictions = model.predictions(decoded)
    assert len(predictions["pred_boxes"]) == layers
    outputs = model.outputs(predictions, decoded, 2)
    for name, values in predictions.items():
        found = [layer[name] for layer in [*outputs["aux_outputs"], outputs]]
        assert all(torch.equal(x, value) for x, value in zip(found, values, strict=True))
