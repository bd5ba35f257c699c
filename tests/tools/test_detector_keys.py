import pytest
import torch

from models import build_model
from tests.tools.published import published
from tests.util import detrex
from tools.detector_keys import keys_from_state
from util.errors import UserError


def test_every_key_is_read_from_the_shapes():
    found = keys_from_state(published("lite_dino_r50_h3l1_2p1x3"))
    assert found == {
        "modelname": "dino", "embed_init_tgt": True, "num_queries": 900, "num_classes": 91, "dn_labelbook_size": 91,
        "hidden_dim": 256, "num_feature_levels": 4, "dim_feedforward": 2048, "enc_layers": 6,
        "dec_layers": 6, "enc_n_points": 4, "dec_n_points": 4, "num_expansion": 3, "same_loc": False, "key_aware": True,
        "proj_key": False, "backbone": "resnet50", "return_interm_indices": [1, 2, 3]}


def test_detrexs_dino_has_heads_and_positions_of_its_own():
    found = keys_from_state(detrex.dino().state_dict())
    assert found == {
        "modelname": "dino", "embed_init_tgt": True, "num_queries": 20, "num_classes": 91, "dn_labelbook_size": 91,
        "hidden_dim": 64, "num_feature_levels": 4, "dim_feedforward": 32, "enc_layers": 2,
        "dec_layers": 2, "enc_n_points": 4, "dec_n_points": 4, "num_expansion": None, "same_loc": False,
        "key_aware": False, "proj_key": False, "backbone": "resnet18", "return_interm_indices": [1, 2, 3],
        "dec_pred_bbox_embed_share": False, "dec_pred_class_embed_share": False,
        "pe_temperatureH": 10000, "pe_temperatureW": 10000, "pe_centres": True}


def test_detrexs_other_detectors():
    found = keys_from_state(detrex.deformable_detr().state_dict())
    assert found["modelname"] == "deformable_detr" and found["num_queries"] == 20 and found["num_classes"] == 91
    found = keys_from_state(detrex.detr(classes=7).state_dict())
    assert found["modelname"] == "detr" and found["num_classes"] == 7 and found["return_interm_indices"] == [3]


@pytest.mark.parametrize("options", [{"pre_norm": True}, {"position_embedding": "learned"}])
def test_what_a_key_tells_by_its_presence(tiny_sdetr, options):
    for name in ("sdetr_r50", "detr_r50"):
        plain, changed = (keys_from_state(build_model(tiny_sdetr(name, **given))[0].state_dict())
                          for given in ({}, options))
        assert changed == plain | options and not options.keys() & plain.keys()


BRANCH = {"num_queries": 20, "num_queries_one2many": 7}


@pytest.mark.parametrize("name", ["dino", "sdetr_r50", "detr_r50"])
def test_one_to_many_supervision(tiny_config, tiny_sdetr, name):
    """Further heads have names; the queries of a branch are beside those that detect: only a config divides them."""
    def state(**options):
        return build_model(tiny_config | options if name == "dino" else tiny_sdetr(name, **options))[0].state_dict()

    plain, branch = keys_from_state(state(num_queries=27)), state(**BRANCH)
    assert "one2many" not in plain and "num_queries_one2many" not in plain
    assert keys_from_state(state(num_queries=27, one2many="shared")) == plain | {"one2many": "shared"}
    assert keys_from_state(branch) == plain
    assert keys_from_state(branch, BRANCH) == plain | BRANCH
    for useless in ({}, {"num_queries_one2many": 0}, {"num_queries_one2many": 27}, {"num_queries_one2many": "7"}):
        assert keys_from_state(branch, useless) == plain


def test_the_queries_of_a_branch_that_is_not_h_detrs():
    state = published("h_deformable_detr_r50_two_stage")
    assert keys_from_state(state)["num_queries_one2many"] == 1500
    found = keys_from_state(state, {"num_queries_one2many": 900})
    assert (found["num_queries"], found["num_queries_one2many"]) == (900, 900)


@pytest.mark.parametrize("keys", [
    ["label_enc.weight", "refpoint_embed.weight", "class_embed.weight",
     "transformer.decoder.query_scale.layers.0.weight"],
    ["label_enc.weight", "transformer.enc_output.weight", "class_embed.0.weight"],
    ["transformer.reference_points.weight", "query_embed.weight"],
    ["class_embed.weight", "transformer.decoder.layers.0.multihead_attn.in_proj_weight"]])
def test_a_detector_that_is_only_similar_is_not_known(keys):
    """DN-DETR, with the label embeddings of DINO, and incomplete ones."""
    with pytest.raises(UserError, match="of no detector that is known here"):
        keys_from_state({key: torch.zeros(4, 4) for key in keys})


def test_a_convnext_in_its_published_layout():
    state = {key: value for key, value in published("dino_4scale_r50").items() if not key.startswith("backbone.")}
    channels = (256, 512, 1024, 2048)
    state["backbone.0.downsample_layers.0.0.weight"] = torch.empty(256, 3, 4, 4)
    state |= {f"backbone.0.norm{i}.weight": torch.empty(c) for i, c in enumerate(channels)}
    state |= {f"backbone.0.stages.2.{i}.gamma": torch.empty(1024) for i in range(27)}
    found = keys_from_state(state)
    assert found["backbone"] == "convnext_xlarge_22k" and found["return_interm_indices"] == [1, 2, 3]
