import argparse

import pytest

from main import get_args_parser, parse_args
from util.config import load_config, parse_pairs
from util.errors import UserError
from util.options import KEYS, parse_options
from util.short_forms import REFUSED, SHORT_FORMS, add_short_forms, expand_short_forms

# All flags of the published main.py files.
DETR_FLAGS = """lr lr_backbone batch_size weight_decay epochs lr_drop clip_max_norm frozen_weights backbone dilation
    position_embedding enc_layers dec_layers dim_feedforward hidden_dim dropout nheads num_queries pre_norm masks
    no_aux_loss set_cost_class set_cost_bbox set_cost_giou mask_loss_coef dice_loss_coef bbox_loss_coef giou_loss_coef
    eos_coef dataset_file coco_path coco_panoptic_path remove_difficult output_dir device seed resume start_epoch eval
    num_workers world_size dist_url""".split()
DEFORMABLE_DETR_FLAGS = """lr lr_backbone_names lr_backbone lr_linear_proj_names lr_linear_proj_mult batch_size
    weight_decay epochs lr_drop lr_drop_epochs clip_max_norm sgd with_box_refine two_stage frozen_weights backbone
    dilation position_embedding position_embedding_scale num_feature_levels enc_layers dec_layers dim_feedforward
    hidden_dim dropout nheads num_queries dec_n_points enc_n_points masks no_aux_loss set_cost_class set_cost_bbox
    set_cost_giou mask_loss_coef dice_loss_coef cls_loss_coef bbox_loss_coef giou_loss_coef focal_alpha dataset_file
    coco_path coco_panoptic_path remove_difficult output_dir device seed resume start_epoch eval num_workers
    cache_mode""".split()
H_DETR_FLAGS = [*(set(DEFORMABLE_DETR_FLAGS) - {"num_queries"}), *"""pretrained_backbone_path drop_path_rate
    num_queries_one2one num_queries_one2many mixed_selection look_forward_twice k_one2many lambda_one2many
    eval_in_training_set topk use_fp16 use_checkpoint use_wandb mstest mstest-with-h-flip vote_threshold""".split()]
LITE_DETR_FLAGS = """config_file options dataset_file coco_path coco_panoptic_path remove_difficult fix_size output_dir
    note device seed resume pretrain_model_path finetune_ignore start_epoch eval num_workers test debug
    find_unused_params save_results save_log world_size dist_url rank local_rank amp benchmark benchmark_only""".split()


def expanded(*argv):
    parser = argparse.ArgumentParser()
    add_short_forms(parser)
    return parse_pairs(expand_short_forms(parser.parse_args(argv)))


def test_every_short_form_sets_keys():
    pairs = [pair for form in SHORT_FORMS.values() for pair in form.split()]
    assert len(pairs) > 40 and all(pair.partition("=")[0] in KEYS for pair in pairs)


@pytest.mark.parametrize("flags", [DETR_FLAGS, DEFORMABLE_DETR_FLAGS, H_DETR_FLAGS, LITE_DETR_FLAGS],
                         ids=["DETR", "Deformable DETR", "H-DETR", "Lite DETR"])
def test_every_published_flag_is_taken_or_refused(flags):
    taken = {flag.removeprefix("--") for flag in get_args_parser()._option_string_actions}
    assert taken.isdisjoint(REFUSED)
    assert [flag for flag in flags if flag not in taken | set(REFUSED)] == []


@pytest.mark.parametrize("flag", REFUSED)
def test_a_refused_flag_ends_with_its_reason(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--coco_path", "DIR", f"--{flag}", "0.5"])
    assert f"--{flag}: {REFUSED[flag]}" in capsys.readouterr().err


@pytest.mark.parametrize("name, words", [("coco_panoptic", "segmentation is not built"), ("o365", "is not read here")])
def test_other_formats_are_refused(name, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--coco_path", "DIR", "--dataset_file", name])
    assert words in capsys.readouterr().err
    assert parse_args(["--coco_path", "DIR", "--dataset_file", "coco"]).dataset_file == "coco"


@pytest.mark.parametrize("argv, options", [
    ([], {}), (["--lr", "1e-4"], {"lr": 1e-4}), (["--epochs=150", "--lr_drop", "100"], {"epochs": 150, "lr_drop": 100}),
    (["--dilation", "--pre_norm"], {"dilation": True, "pre_norm": True}), (["--no_aux_loss"], {"aux_loss": False}),
    (["--backbone", "resnet101"], {"backbone": "resnet101"}), (["--enc_layers", "[3,6]"], {"enc_layers": [3, 6]}),
    (["--lr_backbone", "0"], {"lr_backbone": 0}),
    (["--lr_backbone_names", "backbone.0", "backbone.neck"], {"lr_backbone_names": ["backbone.0", "backbone.neck"]}),
    (["--lr_linear_proj_names", "reference_points"], {"lr_linear_proj_names": ["reference_points"]}),
    (["--lr_drop_epochs", "30", "40"], {"multi_step_lr": True, "lr_drop_list": [30, 40]}),
    (["--use_fp16", "--topk", "200"], {"amp": "cuda", "amp_dtype": "float16", "num_select": 200}),
    (["--pretrained_backbone_path", "a/swin.pth"], {"backbone_dir": "a/swin.pth"}),
    (["--num_queries_one2one", "300", "--num_queries_one2many", "1500"],
     {"num_queries": 300, "num_queries_one2many": 1500}),
], ids=str)
def test_values(argv, options):
    assert expanded(*argv) == options


@pytest.mark.parametrize("config", ["SDETR/sdetr_r50", "SDETR/detr_r50", "SDETR/lite_sdetr_r50", "DINO/DINO_4scale"])
def test_the_flags_reach_every_model(config):
    args = parse_args(["-c", f"config/{config}.py", "--hidden_dim", "64", "--enc_layers", "3", "--num_queries", "7",
                       "--dropout", "0", "--set_cost_giou", "3", "--position_embedding", "learned"])
    options = parse_options(load_config(args.config_file, parse_pairs(expand_short_forms(args))))
    assert (options.transformer.hidden_dim, options.encoder.enc_layers, options.decoder.num_queries) == (64, 3, 7)
    assert (options.transformer.dropout, options.loss.set_cost_giou) == (0.0, 3.0)
    assert options.position.position_embedding == "learned"


def test_h_detrs_flags_make_its_model():
    """Those of its two-stage R50 config of 12 epochs, but for the backbone's learning rate and the like."""
    args = parse_args(["-c", "config/DeformableDETR/r50.py", "--with_box_refine", "--two_stage", "--dim_feedforward",
                       "2048", "--num_queries_one2one", "300", "--num_queries_one2many", "1500", "--k_one2many", "6",
                       "--lambda_one2many", "1.0", "--dropout", "0.0", "--mixed_selection", "--look_forward_twice",
                       "--cls_loss_coef", "2", "--drop_path_rate", "0.5"])
    options = parse_options(load_config(args.config_file, parse_pairs(expand_short_forms(args))))
    form = options.deformable_detr
    assert form.with_box_refine and form.two_stage and form.mixed_selection and form.look_forward_twice
    branch = options.one_to_many
    assert (branch.num_queries_one2many, branch.k_one2many, branch.lambda_one2many) == (1500, 6, 1.0)
    assert branch.one2many == "branch"
    assert (options.decoder.num_queries, options.transformer.dropout) == (300, 0)
    assert options.encoder_width == options.decoder_width == 2048
    assert (options.loss.cls_loss_coef, options.backbone.drop_path_rate) == (2.0, 0.5)


def test_a_val_set_is_split_off_by_a_flag():
    assert expanded("--val_fraction", "0.1") == {"val_fraction": 0.1}
    with pytest.raises(UserError, match="val_fraction"):
        parse_options(load_config("config/SDETR/sdetr_r50.py", expanded("--val_fraction", "1.5")))
