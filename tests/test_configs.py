"""Every config under config/ makes a detector that trains and detects. Small options stand in for large ones."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.ops import batched_nms

from measure.model_cost import count_flops
from models import build_model
from models.encoders.interleaved import InterleavedEncoder
from models.layers.deform_attn import DeformableAttention, KeyAwareDeformAttn
from util.config import load_config

BASES = {"coco_transformer.py", "schedule.py"}  # values for other configs, and no model
CONFIGS = sorted(str(path) for path in Path("config").glob("*/*.py") if path.name not in BASES)
QUICK = {  # one of each kind of model and of backbone
    "config/DINO/baseline_5scale.py", "config/DeformableDETR/h_r50_two_stage.py", "config/DeformableDETR/r50_refine.py",
    "config/LiteDINO/convnextxl_h3l1_2p1x3.py", "config/LiteDINO/swint_h2l2_2p1x3.py", "config/SDETR/detr_r50_dc5.py",
    "config/SDETR/lite_sdetr_r50.py", "config/finetune/efficientnet_lite0.py"}
SMALL = {"pretrained_backbone": False, "hidden_dim": 32, "dim_feedforward": 32, "nheads": 2, "num_queries": 12,
         "num_select": 10, "num_classes": 91}
SMALL_BACKBONES = {"resnet50": "resnet18", "swin": "swin_T_224_1k", "convnext": "timm:convnext_atto"}


def test_the_quick_ones_exist():
    assert set(CONFIGS) > QUICK


def small(path):
    config = load_config(path)
    options = dict(SMALL)
    for large, other in SMALL_BACKBONES.items():
        if config.backbone.startswith(large) and not config.get("dilation", False):
            options["backbone"] = other
    if "num_queries_one2many" in config:
        options["num_queries_one2many"] = 18
    if isinstance(config.dec_layers, int):
        options["dec_layers"] = 2
    return load_config(path, options)


@pytest.mark.parametrize("path", [
    pytest.param(path, marks=() if path in QUICK else pytest.mark.slow) for path in CONFIGS])
def test_every_config_trains_and_detects(path):
    torch.manual_seed(0)
    model, criterion, post = build_model(small(path))
    images = [torch.randn(3, 64, 96), torch.randn(3, 80, 64)]
    targets = [{"labels": torch.tensor([3, 90]), "boxes": torch.tensor([[0.4, 0.5, 0.3, 0.2], [0.6, 0.5, 0.5, 0.7]])},
               {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.4, 0.2, 0.4]])}]

    losses = criterion(model.train()(images, targets), targets)
    assert set(criterion.weight_dict) <= set(losses)
    sum(weight * losses[name] for name, weight in criterion.weight_dict.items()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert [name for name, p in trained.items() if not p.grad.isfinite().all()] == []

    model.eval()
    with torch.no_grad():
        outputs = model(images)
        assert all(loss.isfinite() for loss in criterion.eval()(outputs, targets).values())
    sizes, own = torch.tensor([[640, 960], [800, 640]]), post["bbox"]
    results = replace(own, nms_iou_threshold=-1)(outputs, sizes)
    assert [set(result) for result in results] == [{"scores", "labels", "boxes"}] * 2
    for result in results:
        assert result["boxes"].shape == (len(result["scores"]), 4) and len(result["scores"]) >= 10
        assert result["boxes"].isfinite().all() and result["labels"].max() < 91
    for result, kept in zip(results, own(outputs, sizes)):
        wanted = torch.arange(len(result["scores"]))
        if own.nms_iou_threshold > 0:
            wanted = batched_nms(result["boxes"], result["scores"], result["labels"], own.nms_iou_threshold)
        assert all(torch.equal(kept[name], value[wanted]) for name, value in result.items())


FOURTH = """\
_base_ = ['{base}']

num_expansion = 2
enc_scale = 2
"""


@pytest.mark.parametrize("base", ["DeformableDETR/r50_refine", "DINO/baseline_5scale"])
def test_the_lite_form_of_another_detector_is_a_short_config(tmp_path, base):
    path = Path(f"config/{base}.py").resolve()
    (tmp_path / "lite.py").write_text(FOURTH.format(base=path))
    assert len(FOURTH.splitlines()) <= 10

    plain, lite = build_model(small(path))[0], build_model(small(tmp_path / "lite.py"))[0]
    encoder = lite.transformer.encoder
    assert type(encoder) is InterleavedEncoder and len(encoder.layers) == len(plain.transformer.encoder.layers)
    assert encoder.block_length == 3 and encoder.enc_scale == 2
    assert {type(m) for m in lite.modules() if isinstance(m, DeformableAttention)} == {KeyAwareDeformAttn}
    assert count_flops(lite, (128, 160))["encoder"] < 0.6 * count_flops(plain, (128, 160))["encoder"]
