import argparse

import pytest
import torch

from datasets.coco_eval import coco_results
from engine import Evaluation
from models import build_model
from tests.tools.published import published
from tests.util import detrex
from tools import inspect_checkpoint
from tools.detector_keys import keys_from_state
from tools.inspect_checkpoint import choose_config, main, rank_scales
from util.errors import UserError
from util.options import parse_options


@pytest.mark.parametrize("name, config, options", [
    ("lite_dino_r50_h3l1_2p1x3", "DINO_4scale", {}),
    ("lite_dino_r50_h3l1_6p1x1", "r50_h3l1_6p1x1", {}),
    ("lite_dino_r50_h3l1_2p1x3_msda", "DINO_4scale", {"key_aware": False}),
    ("lite_dino_swint_h3l1_2p1x3", "DINO_4scale_swinT", {}),
    ("dino_4scale_r50", "baseline_4scale", {}),
    ("deformable_detr_r50", "r50", {}),
    ("deformable_detr_r50_two_stage", "r50_two_stage", {}),
    ("h_deformable_detr_r50_two_stage", "h_r50_two_stage", {}),
    ("sdetr_r50", "sdetr_r50", {}),
    ("detr_r50", "detr_r50", {}),
])
def test_released_layouts_are_recognised(name, config, options):
    path, needed = choose_config(keys_from_state(published(name)))
    assert (path.stem, needed) == (config, options)


@pytest.fixture
def save(tiny_config, tmp_path):
    """save(**options): a checkpoint of the tiny Lite-DINO with eight heads, and its config."""
    def save(**options):
        config = tiny_config | {"nheads": 8, "num_classes": 91, "dn_labelbook_size": None, **options}
        torch.save({"model": build_model(config)[0].state_dict()}, tmp_path / "checkpoint.pth")
        return tmp_path / "checkpoint.pth", config

    return save


def arguments(path, **other):
    return argparse.Namespace(**{"checkpoint": str(path), "data": None, "images": 2, "device": "cpu"} | other)


@pytest.mark.parametrize("options", [
    {}, {"num_expansion": 2}, {"num_expansion": None}, {"key_aware": False}, {"proj_key": True}, {"same_loc": True},
    {"same_loc": True, "key_aware": False}, {"enc_n_points": 3, "dec_n_points": 1}, {"embed_init_tgt": False},
    {"return_interm_indices": [1, 2, 3]}, {"backbone": "resnet34"}, {"num_queries": 31}, {"dn_labelbook_size": 95},
])
def test_own_checkpoints_load_with_the_printed_options(save, options, capsys):
    path, config = save(**options)
    assert main(arguments(path)) == 0
    printed = capsys.readouterr().out
    assert "the weights load with these options" in printed
    assert ("enc_scale: from 1 to 2" in printed) == (config.num_expansion is not None)


@pytest.mark.parametrize("options", [{"one2many": "shared"}, {"num_queries_one2many": 7}])
def test_a_training_with_one_to_many_supervision_loads_with_the_printed_options(save, options, capsys):
    path, config = save(**options)
    saved = torch.load(path, weights_only=True) | {"config": parse_options(config).to_dict()}
    torch.save(saved, path)
    assert main(arguments(path)) == 0
    printed = capsys.readouterr().out
    assert all(f"{key} = {value!r}" in printed for key, value in options.items()) and "num_queries = 20" in printed


@pytest.mark.parametrize("make, options", [
    (detrex.dino, "dec_pred_class_embed_share=False pe_temperatureH=10000"), (detrex.deformable_detr, "num_queries=20"),
    (detrex.detr, "dim_feedforward=32")])
def test_detrexs_checkpoints_load_with_the_printed_options(make, options, tmp_path, capsys):
    torch.save({"model": detrex.randomised(make())}, tmp_path / "detrex.pth")
    assert main(arguments(tmp_path / "detrex.pth")) == 0
    printed = capsys.readouterr().out
    assert "the weights load with these options" in printed
    assert all(option in printed.replace(" = ", "=") for option in options.split())


def test_a_checkpoint_with_something_else_in_it_is_told(save, capsys):
    path, _ = save()
    state = torch.load(path, weights_only=True)["model"]
    torch.save({"model": state | {"transformer.extra.weight": torch.zeros(2)}}, path)
    assert main(arguments(path)) == 1
    assert "these options do not load it" in capsys.readouterr().out


def test_no_detector(tmp_path):
    torch.save({"model": {"fc.weight": torch.zeros(2, 2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no detector that is known here; names in it are .'fc.weight'"):
        main(arguments(tmp_path / "other.pth"))


def test_scales_are_ranked_by_ap(save, coco_root, monkeypatch):
    """An evaluation that finds every object at enc_scale 1, the wrong places at 2."""
    _, config = save()
    model, _, post = build_model(config)

    def evaluate(model, criterion, postprocess, loader, device, max_batches):
        assert max_batches == 3
        coco, detections = loader.dataset.coco, {}
        shift = 0 if model.transformer.encoder.enc_scale == 1 else 500
        for image in list(coco.imgs)[:max_batches]:
            rows = coco.imgToAnns[image]
            boxes = torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            found = {"boxes": boxes + shift, "scores": torch.ones(len(rows)),
                     "labels": torch.tensor([row["category_id"] for row in rows])}
            detections |= coco_results([image], [found], coco.cats)
        return Evaluation(detections, {})

    monkeypatch.setattr(inspect_checkpoint, "evaluate", evaluate)
    ranking = rank_scales(model, post["bbox"], parse_options(config), str(coco_root), 3, torch.device("cpu"))
    assert [scale for _, scale in ranking] == [1, 2]
    assert ranking[0][0] > 0.9 and ranking[1][0] == 0


def test_val_images_are_tried(save, coco_root, capsys):
    path, _ = save()
    assert main(arguments(path, data=str(coco_root), images=1)) == 0
    printed = capsys.readouterr().out
    assert "enc_scale=1  0." in printed and "enc_scale=2  0." in printed
    assert printed.rstrip().splitlines()[-1].split("enc_scale=")[1] in ("1", "2")
