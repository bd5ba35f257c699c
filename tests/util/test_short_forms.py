import argparse

import pytest

from main import parse_args
from util.config import load_config, parse_pairs
from util.options import KEYS, parse_options
from util.short_forms import SHORT_FORMS, add_short_forms, expand_short_forms

DETR_FLAGS = """lr lr_backbone batch_size weight_decay epochs lr_drop clip_max_norm backbone dilation position_embedding
    enc_layers dec_layers dim_feedforward hidden_dim dropout nheads num_queries pre_norm no_aux_loss set_cost_class
    set_cost_bbox set_cost_giou bbox_loss_coef giou_loss_coef eos_coef""".split()


def expanded(*argv):
    parser = argparse.ArgumentParser()
    add_short_forms(parser)
    return parse_pairs(expand_short_forms(parser.parse_args(argv)))


def test_every_flag_sets_a_key():
    assert sorted(SHORT_FORMS) == sorted(DETR_FLAGS)
    assert all(pair.partition("=")[0] in KEYS for pair in SHORT_FORMS.values())


@pytest.mark.parametrize("argv, options", [
    ([], {}), (["--lr", "1e-4"], {"lr": 1e-4}), (["--epochs=150", "--lr_drop", "100"], {"epochs": 150, "lr_drop": 100}),
    (["--dilation", "--pre_norm"], {"dilation": True, "pre_norm": True}), (["--no_aux_loss"], {"aux_loss": False}),
    (["--backbone", "resnet101"], {"backbone": "resnet101"}), (["--enc_layers", "[3,6]"], {"enc_layers": [3, 6]}),
    (["--lr_backbone", "0"], {"lr_backbone": 0}),
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
