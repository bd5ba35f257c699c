"""How an evaluation was done, and whether another one was done so."""
import json

import pytest
import torch

from reports.conditions import conditions, differences
from util.options import KEYS, parse_options


def test_what_the_numbers_depend_on_is_recorded(tiny_config):
    how = conditions(parse_options(tiny_config | {"nms_iou_threshold": 0.7, "eval_size_factor": 1.5}), torch.bfloat16)
    assert how["precision"] == "bfloat16" and (how["shorter_side"], how["longest_side"]) == (144, 192)
    assert how["nms_iou_threshold"] == 0.7 and how["num_select"] == how["num_queries"] == 20
    assert how["fix_size"] is False and how["max_batches"] is None and how["eval_batch_size"] == 1
    assert how["classification"] == "focal" and how["modelname"] == "dino"
    assert json.loads(json.dumps(how)) == how
    assert not {"lr", "dropout", "batch_size", "dn_number", "set_cost_class"} & how.keys()


def test_the_names_of_keys_are_those_of_config_keys(tiny_config):
    own = {"precision", "shorter_side", "longest_side", "fix_size", "max_batches", "modelname"}
    assert conditions(parse_options(tiny_config)).keys() - own <= KEYS.keys()


@pytest.mark.parametrize("change, words", [
    ({"num_select": 10}, "num_select=20 instead of 10"), ({"data_aug_scales": [32]}, "shorter_side=96 instead of 32"),
    ({"enc_scale": 1}, "enc_scale=2 instead of 1")])
def test_options_that_change_the_numbers_are_told(tiny_config, change, words):
    found = json.loads(json.dumps(conditions(parse_options(tiny_config))))
    assert differences(found, parse_options(tiny_config | change)) == [words]


def test_precision_batches_and_training_may_be_others(tiny_config):
    found = conditions(parse_options(tiny_config | {"eval_batch_size": 8, "lr": 1, "dropout": 0.5}), torch.float16)
    assert differences(found, parse_options(tiny_config)) == []
    assert differences(conditions(parse_options(tiny_config), max_batches=16, fix_size=True),
                       parse_options(tiny_config)) == [
        "fix_size=True instead of False", "max_batches=16 instead of None"]


def test_without_a_record_everything_differs(tiny_config):
    assert "precision" not in " ".join(differences({}, parse_options(tiny_config))) and len(
        differences({}, parse_options(tiny_config))) > 20
