"""Checkpoints of detrex and of transformers."""
import pytest
import torch

from models import build_model
from tests.util import detrex
from tests.util.detrex import randomised
from tests.util.states import refusal, snapshot
from util.checkpoint import load_weights
from util.class_names import COCO_IDS
from util.config import load_config
from util.foreign_names import NEVER, in_our_names, origin

SMALL = {"pretrained_backbone": False, "backbone": "resnet18", "hidden_dim": 64, "nheads": 8, "dim_feedforward": 32,
         "enc_layers": 2, "dec_layers": 2, "num_queries": 20}
DETREX_DINO = {"dec_pred_bbox_embed_share": False, "dec_pred_class_embed_share": False}


# detrex

@pytest.mark.parametrize("make, config, options", [
    (detrex.dino, "DINO/baseline_4scale", DETREX_DINO), (detrex.deformable_detr, "DeformableDETR/r50", {}),
    (detrex.detr, "SDETR/detr_r50", {})])
def test_detrex_loads_strictly(make, config, options):
    state = randomised(make())
    model = build_model(load_config(f"config/{config}.py", SMALL | options))[0]
    load_weights(model, {"model": state})
    ours, wanted = snapshot(model), in_our_names(state)
    assert origin(state) == "detrex"
    assert all(torch.equal(ours[key], wanted[key]) for key in ours)
    assert torch.equal(ours["backbone.0.body.layer2.1.conv2.weight"], state["backbone.res3.1.conv2.weight"])
    assert torch.equal(ours["backbone.0.body.layer3.0.downsample.1.running_var"],
                       state["backbone.res4.0.shortcut.norm.running_var"])
    first = "transformer.encoder.layers.1."
    assert torch.equal(ours[f"{first}linear1.weight"], state[f"{first}ffns.0.layers.0.0.weight"])
    assert torch.equal(ours[f"{first}norm2.bias"], state[f"{first}norms.1.bias"])


def test_the_norms_of_a_decoder_layer_follow_their_attentions():
    """Deformable decoders count them by their names in the published code, where cross-attention has the first one."""
    layer = "transformer.decoder.layers.0."
    for make, order in ((detrex.dino, {"norms.0": "norm2", "norms.1": "norm1", "norms.2": "norm3"}),
                        (detrex.detr, {"norms.0": "norm1", "norms.1": "norm2", "norms.2": "norm3"})):
        state = randomised(make())
        ours = in_our_names(state)
        for theirs, our in order.items():
            assert torch.equal(ours[f"{layer}{our}.weight"], state[f"{layer}{theirs}.weight"])
    assert torch.equal(in_our_names(state)[f"{layer}multihead_attn.in_proj_weight"],
                       state[f"{layer}attentions.1.attn.in_proj_weight"])


def test_the_levels_of_detrex_go_on_with_the_extra_ones():
    state = randomised(detrex.dino())
    ours = in_our_names(state)
    assert torch.equal(ours["input_proj.2.0.weight"], state["neck.convs.2.conv.weight"])
    assert torch.equal(ours["input_proj.3.1.bias"], state["neck.extra_convs.0.norm.bias"])
    assert torch.equal(ours["transformer.level_embed"], state["transformer.level_embeds"])


def test_the_last_heads_of_detrexs_dino_are_those_of_the_proposals():
    state = randomised(detrex.dino(classes=7))
    ours = in_our_names(state)
    assert torch.equal(ours["transformer.enc_out_class_embed.weight"], state["class_embed.2.weight"])
    assert torch.equal(ours["transformer.enc_out_bbox_embed.layers.2.bias"], state["bbox_embed.2.layers.2.bias"])
    assert not any(key.startswith(("class_embed.2", "transformer.decoder.bbox_embed.2")) for key in ours)
    assert ours["label_enc.weight"].shape == (8, 64)
    assert torch.equal(ours["label_enc.weight"][:7], state["label_enc.weight"])


def test_cocos_80_classes_go_to_their_category_ids():
    state = randomised(detrex.dino())
    head = in_our_names(state)["class_embed.0.bias"]
    assert len(head) == 91 and torch.equal(head[COCO_IDS], state["class_embed.0.bias"])
    assert (head[[0, 12, 26, 83]] == NEVER).all()
    softmax = randomised(detrex.detr())
    head = in_our_names(softmax)["class_embed.bias"]
    assert len(head) == 92 and head[90] == softmax["class_embed.bias"][79]
    assert head[-1] == softmax["class_embed.bias"][-1]  # no object


def test_separate_heads_do_not_load_as_one():
    model = build_model(load_config("config/DINO/baseline_4scale.py", SMALL))[0]
    before = snapshot(model)
    text = refusal(load_weights, model, {"model": randomised(detrex.dino())})
    assert "dec_pred_bbox_embed_share=False" in text or "dec_pred_class_embed_share=False" in text
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_other_names_stay():
    state = {"transformer.encoder.layers.0.norm1.weight": torch.ones(1), "model.fc1.weight": torch.ones(1)}
    assert origin(state) == "" and in_our_names(state) == state


# transformers: its own models, with outputs

@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


WIDTH = {"hidden_dim": 128, "nheads": 2, "num_classes": 7, "num_queries": 5, "num_select": 5}  # 32 groups in GroupNorm


@pytest.fixture
def foreign(transformers):
    """foreign(name, **config): a small random model of transformers in evaluation mode."""
    def foreign(name, **config):
        resnet = transformers.ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2],
                                           layer_type="basic", out_features=config.pop("out_features"))
        config = getattr(transformers, f"{name}Config")(
            backbone_config=resnet, d_model=128, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32,
            decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5, num_labels=7,
            **config)
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForObjectDetection")(config).eval()
        for key, tensor in model.state_dict().items():
            if tensor.dim() > 1:
                torch.nn.init.normal_(tensor, std=tensor[0].numel() ** -0.5)
            elif key.endswith(("running_var", "norm.weight", "normalization.weight")):
                torch.nn.init.uniform_(tensor, 0.8, 1.2)
            elif tensor.is_floating_point():
                torch.nn.init.normal_(tensor, std=0.1)
        return model

    return foreign


@torch.no_grad()
def assert_equal_outputs(model, theirs):
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    ours, wanted = model.eval()([image]), theirs(image[None])
    torch.testing.assert_close(ours["pred_logits"], wanted.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["pred_boxes"], wanted.pred_boxes, rtol=0, atol=1e-5)


def test_transformers_detr_gives_the_same_outputs(foreign):
    theirs = foreign("Detr", out_features=["stage4"])
    model = build_model(load_config("config/SDETR/detr_r50.py", SMALL | WIDTH))[0]
    load_weights(model, theirs.state_dict())
    assert_equal_outputs(model, theirs)


@pytest.mark.parametrize("form", [{}, {"with_box_refine": True}, {"with_box_refine": True, "two_stage": True}])
def test_transformers_deformable_detr_gives_the_same_outputs_also_from_its_file(foreign, form, tmp_path):
    theirs = foreign("DeformableDetr", out_features=["stage2", "stage3", "stage4"], two_stage_num_proposals=5, **form)
    theirs.save_pretrained(tmp_path)
    for source in (theirs.state_dict(), tmp_path / "model.safetensors"):
        model = build_model(load_config("config/DeformableDETR/r50.py", SMALL | WIDTH | form))[0]
        load_weights(model, source)
        assert_equal_outputs(model, theirs)


def test_the_published_names_of_transformers_detr(foreign):
    """The released files have timm's names for the backbone."""
    theirs = foreign("Detr", out_features=["stage4"])
    model = build_model(load_config("config/SDETR/detr_r50.py", SMALL | WIDTH))[0]
    load_weights(model, theirs.state_dict())
    body = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.0.body.")}
    state = {key: value for key, value in theirs.state_dict().items() if ".backbone." not in key}
    state |= {f"model.backbone.conv_encoder.model.{key.removeprefix('backbone.0.body.')}": value
              for key, value in body.items()}
    again = build_model(load_config("config/SDETR/detr_r50.py", SMALL | WIDTH))[0]
    load_weights(again, state)
    assert_equal_outputs(again, theirs)
