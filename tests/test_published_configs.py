"""The six config files that IDEA-Research's DINO and Lite-DETR repositories publish, by their keys and values, run here
unchanged. (The files under config/ have the same values, without keys that have no effect.)"""
import json
import re
from pathlib import Path

import pytest
import timm
import torch

import measure.speed
from models import build_detector
from models.criterion import weighted_sum
from tests.conftest import calling
from util.config import load_config, parse_pairs
from util.errors import UserError
from util.optim import param_groups
from util.options import parse_options

PUBLISHED = json.loads(Path("tests/golden/published_configs.json").read_text(encoding="utf-8"))
FILES = [name for name in PUBLISHED if not name.endswith("coco_transformer.py")]
LITE = "Lite-DETR/config/DINO/DINO_4scale.py"
LARGE = ("DINO_4scale_swin.py", "DINO_4scale_convnext.py")  # backbones of 200 M parameters
EACH = [pytest.param(name, marks=[] if name == LITE else
                     [pytest.mark.slow, pytest.mark.soak] if name.endswith(LARGE) else [pytest.mark.slow])
        for name in FILES]
# Of the released checkpoints of the same models.
RELEASED = {"DINO/config/DINO/DINO_4scale.py": 46_893_182, LITE: 47_684_222,
            "Lite-DETR/config/DINO/DINO_4scale_swinT.py": 48_227_256}
# Of DINO's scripts for evaluation.
SCRIPT = ["dn_scalar=100", "embed_init_tgt=TRUE", "dn_label_coef=1.0", "dn_bbox_coef=1.0", "use_ema=False",
          "dn_box_noise_scale=1.0"]


@pytest.fixture
def published(tmp_path):
    """published(name): the file of that name, with its base beside it."""
    def write(name):
        base = name.rpartition("/")[0] + "/coco_transformer.py"
        for file, first in ((base, ""), (name, "_base_ = ['coco_transformer.py']\n")):
            path = tmp_path / Path(file).name
            path.write_text(first + "".join(f"{key} = {value!r}\n" for key, value in PUBLISHED[file].items()))
        return path

    return write


def expected_parameters(name):
    """From the releases, or by adding up what the config changes in DINO with four levels and ResNet-50."""
    if name in RELEASED:
        return RELEASED[name]
    dino = RELEASED["DINO/config/DINO/DINO_4scale.py"]
    if "5scale" in name:
        attentions = 12 * (256 + 1) * 8 * 4 * 3  # rows for the offsets and weights of eight heads with four points
        return dino + attentions + 256 + 256 * 256 + 3 * 256  # the level's embedding, and its projection with its norm
    timm_name, channels = (("convnext_xlarge.fb_in22k", [256, 512, 1024, 2048]) if "convnext" in name
                           else ("swin_large_patch4_window12_384", [384, 768, 1536]))
    with torch.device("meta"):
        classifier = timm.create_model(timm_name, num_classes=0)
    backbone = sum(p.numel() for p in classifier.parameters()) - 2 * channels[-1]  # without the classifier's norm
    wider = sum(channels[-3:]) - (512 + 1024 + 2048) + 9 * (channels[-1] - 2048)  # 1x1 projections, and the 3x3 one
    return dino - 23_454_912 + backbone + 2 * sum(channels) + 256 * wider


def test_there_are_six():
    assert len(FILES) == 6 and set(RELEASED) < set(FILES)


@pytest.mark.parametrize("options", [[], SCRIPT], ids=["alone", "with DINO's --options"])
@pytest.mark.parametrize("name", FILES)
def test_number_of_parameters(name, options, published):
    config = load_config(published(name), parse_pairs(options) | {"pretrained_backbone": False})
    with torch.device("meta"):
        model, _, _ = build_detector(parse_options(config))
    assert sum(p.numel() for p in model.parameters()) == expected_parameters(name)


def test_values(published):
    dino = parse_options(load_config(published("DINO/config/DINO/DINO_4scale.py")))
    assert dino.denoising.dn_box_noise_scale == 0.4
    assert dino.encoder.num_expansion is None and dino.transformer.key_aware is False
    assert dino.data.data_aug_scales[-1] == 800 and dino.data.data_aug_scale_overlap is None
    lite = parse_options(load_config(published(LITE), parse_pairs(["dim_feedforward_enc=512"])))
    assert lite.encoder.num_expansion == 3 and lite.transformer.key_aware is True
    assert (lite.encoder_width, lite.decoder_width) == (512, 2048)


@pytest.mark.parametrize("name", EACH)
def test_benchmark(name, published, coco_root, monkeypatch, capsys):
    monkeypatch.setattr(measure.speed, "SECONDS", 0.0)
    with calling(published(name), coco_root) as call:
        assert call("--benchmark", "--benchmark_only", "--benchmark_size", 64, 64, data=None,
                    options=[*SCRIPT, "pretrained_backbone=False"]) == 0
    printed = re.search(r"parameters \(M\) +([\d.]+)", capsys.readouterr().out)
    assert printed and float(printed[1]) == round(expected_parameters(name) / 1e6, 2)


@pytest.mark.parametrize("name", EACH)
def test_training_step(name, published):
    options = parse_options(load_config(published(name), {"pretrained_backbone": False}))
    torch.manual_seed(0)
    model, criterion, _ = build_detector(options)
    model.train()
    optimizer = torch.optim.AdamW(param_groups(model, options.training), lr=options.training.lr)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith("transformer.")}
    targets = [{"labels": torch.tensor([3, 90]), "boxes": torch.tensor([[0.4, 0.5, 0.3, 0.2], [0.6, 0.5, 0.5, 0.7]])}]
    losses = criterion(model([torch.randn(3, 64, 96)], targets), targets)
    weighted_sum(losses, criterion.weight_dict).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(after[name].isfinite().all() for name in before)
    moved = sum(not torch.equal(after[name], value) for name, value in before.items())
    assert moved > 0.95 * len(before)


def test_trains(published, coco_root, tmp_path):
    """By main.py, on small images, with a smaller backbone."""
    small = ["backbone=resnet18", "pretrained_backbone=False", "data_aug_scales=[64]", "data_aug_max_size=96",
             "data_aug_scales2_resize=[64]", "data_aug_scales2_crop=[48,64]", "epochs=1", "epoch_steps=1",
             "num_queries=50"]
    with calling(published(LITE), coco_root) as call:
        assert call("--output_dir", tmp_path / "run", options=[*SCRIPT, *small]) == 0
    assert len((tmp_path / "run" / "log.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize("option", [
    "value_proj_after=True", "drop_lr_now=True", "num_topk=500", "dn_scalar=50", "dn_label_coef=2.0",
    "two_stage_type=no", "masks=True", "num_patterns=3", "decoder_sa_type=ca_label", "decoder_module_seq=[ca,sa,ffn]"])
def test_what_has_no_effect_here_is_refused_with_another_value(option, published):
    name = option.partition("=")[0]
    with pytest.raises(UserError, match=f"config key {name}=.* is not supported here"):
        parse_options(load_config(published(LITE), parse_pairs([option])))
