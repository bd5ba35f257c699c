import pytest
import torch

from models import build_model
from models.classification import FocalClassification, SoftmaxClassification
from models.encoders.deformable import DeformableEncoder
from models.encoders.interleaved import CrossScaleLayer, InterleavedEncoder
from util.config import load_config
from util.errors import UserError

NAMES = pytest.mark.parametrize("name", ["sdetr_r50", "detr_r50", "lite_sdetr_r50"])


def heads(part):
    return [layer.self_attn.num_heads for layer in part.layers]


def test_the_published_sdetr():
    """Two stages of 3 encoder and 3 decoder layers, C5 and C4, 8 heads and 1 head in the encoders."""
    model = build_model(load_config("config/SDETR/sdetr_r50.py", {"pretrained_backbone": False}))[0]
    assert [stage.levels for stage in model.stages] == [[1], [0]]
    assert [heads(stage.encoder) for stage in model.stages] == [[8] * 3, [1] * 3]
    assert [heads(stage.decoder) for stage in model.stages] == [[8] * 3] * 2
    assert [proj.in_channels for proj in model.input_proj] == [1024, 2048]
    assert sum(p.numel() for p in model.parameters()) == 41813280


@pytest.mark.parametrize("name, parameters", [("detr_r50", 41524768), ("detr_r50_dc5", 41524768)])
def test_the_published_detr(name, parameters):
    model = build_model(load_config(f"config/SDETR/{name}.py", {"pretrained_backbone": False}))[0]
    assert heads(model.transformer.encoder) == heads(model.transformer.decoder) == [8] * 6
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_depth_and_heads_of_each_stage(build_sdetr):
    model = build_sdetr("sdetr_r50", enc_layers=[0, 2], enc_nheads=[4, 1], dec_layers=[1, 3], dec_nheads=[2, 4])[0]
    assert [heads(stage.encoder) for stage in model.stages] == [[], [1, 1]]
    assert [heads(stage.decoder) for stage in model.stages] == [[2], [4] * 3]


def test_one_number_is_for_all_stages(build_sdetr):
    model = build_sdetr("sdetr_r50", enc_layers=1, enc_nheads=None, dec_layers=2, nheads=4)[0]
    assert [heads(stage.encoder) for stage in model.stages] == [[4]] * 2
    assert [heads(stage.decoder) for stage in model.stages] == [[4] * 2] * 2


@pytest.mark.parametrize("name, levels, rows", [("sdetr_r50", [[1], [0]], None), ("sdetr_r50", [[1], [0, 1]], 2),
                                                ("lite_sdetr_r50", [[2], [1]], 4)])
def test_levels_that_meet_are_told_apart(build_sdetr, name, levels, rows):
    level_embed = build_sdetr(name, stage_levels=levels)[0].level_embed
    assert level_embed is None if rows is None else level_embed.shape == (rows, 32)


def test_lite_encoder(build_sdetr):
    encoder = build_sdetr("lite_sdetr_r50")[0].encoder
    assert type(encoder) is InterleavedEncoder and (encoder.block_length, encoder.enc_scale) == (2, 3)
    # The last block's small feed-forward would feed nobody.
    assert [i for i, layer in enumerate(encoder.layers) if isinstance(layer, CrossScaleLayer)] == [1, 3]
    encoder = build_sdetr("lite_sdetr_r50", stage_levels=[[2], [1], [0]])[0].encoder
    assert [i for i, layer in enumerate(encoder.layers) if isinstance(layer, CrossScaleLayer)] == [1, 3, 5]
    assert type(build_sdetr("lite_sdetr_r50", num_expansion=None)[0].encoder) is DeformableEncoder


@NAMES
@pytest.mark.parametrize("classification, kind, outputs", [
    ("softmax", SoftmaxClassification, 8), ("focal", FocalClassification, 7)])
def test_classification(build_sdetr, name, classification, kind, outputs):
    model, criterion, post = build_sdetr(name, classification=classification, eos_coef=0.3, focal_alpha=0.4)
    assert model.class_embed.out_features == outputs
    for user in (criterion, criterion.matcher, post["bbox"]):
        assert user.classification == (kind(0.3) if classification == "softmax" else kind(0.4))
    if classification == "focal":
        torch.testing.assert_close(model.class_embed.bias.sigmoid(), torch.full((7,), 0.01))


@NAMES
def test_loss_weights(build_sdetr, name):
    _, criterion, _ = build_sdetr(name, dec_layers=2, cls_loss_coef=3, bbox_loss_coef=4, giou_loss_coef=6)
    layers = 2 if name == "detr_r50" else 4
    assert len(criterion.weight_dict) == 3 * layers
    assert [criterion.weight_dict[f"loss_{part}_0"] for part in ("ce", "bbox", "giou")] == [3, 4, 6]
    assert len(build_sdetr(name, dec_layers=2, aux_loss=False)[1].weight_dict) == 3


@pytest.mark.parametrize("pre_norm", [True, False])
def test_only_pre_norm_encoders_end_with_a_norm(build_sdetr, pre_norm):
    """As the published weights have it."""
    for name, part in (("detr_r50", "transformer"), ("sdetr_r50", "stages.1")):
        keys = build_sdetr(name, pre_norm=pre_norm)[0].state_dict()
        assert (f"{part}.encoder.norm.weight" in keys) is pre_norm and f"{part}.decoder.norm.weight" in keys


@pytest.mark.parametrize("name, options, message", [
    ("sdetr_r50", {"stage_levels": None, "enc_layers": 1, "dec_layers": 1}, "needs a list of levels"),
    ("sdetr_r50", {"stage_levels": [[1], [2]]}, "from 0, the finest, to 1"),
    ("sdetr_r50", {"stage_levels": [[1, 0], [0]]}, "ascending"),
    ("sdetr_r50", {"stage_levels": [[], [0]]}, "ascending"),
    ("sdetr_r50", {"stage_levels": [[1], [1]]}, "no stage reads level 0"),
    ("sdetr_r50", {"enc_layers": [1, 1, 1]}, "one for each of the 2 stages"),
    ("sdetr_r50", {"dec_layers": [1, 1, 1]}, "dec_layers"),
    ("sdetr_r50", {"dec_layers": [1, 0]}, r"dec_layers=\[1, 0\] must be at least 1"),
    ("sdetr_r50", {"enc_nheads": [8, 3]}, "multiple of the 3 heads of the encoder"),
    ("sdetr_r50", {"dec_nheads": [8, 0]}, "multiple of the 0 heads of the decoder"),
    ("detr_r50", {"return_interm_indices": [2, 3]}, "DETR reads one map"),
    ("detr_r50", {"stage_levels": [[0]]}, "stage_levels"),
    ("detr_r50", {"hidden_dim": 30, "nheads": 3}, "multiple of 4"),
    ("lite_sdetr_r50", {"enc_layers": [3, 3]}, "enc_layers is a number"),
    ("lite_sdetr_r50", {"enc_nheads": [8, 1]}, "enc_nheads"),
    ("lite_sdetr_r50", {"stage_levels": [[2], [4]]}, "to 3"),
    ("lite_sdetr_r50", {"num_feature_levels": 2}, "num_feature_levels=2 is fewer"),
], ids=str)
def test_options_that_make_no_model(build_sdetr, name, options, message):
    with pytest.raises(UserError, match=message):
        build_sdetr(name, **options)
