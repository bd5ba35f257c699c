"""SDETR, and Lite-SDETR, its stages over the interleaved encoder; and what they share with DETR."""
import pytest
import torch

from models import build_model
from models.classification import FocalClassification, SoftmaxClassification
from models.criterion import weighted_sum
from models.encoders.deformable import DeformableEncoder
from models.encoders.interleaved import CrossScaleLayer, InterleavedEncoder
from util.config import load_config
from util.errors import UserError
from util.nested_tensor import NestedTensor

BOTH = pytest.mark.parametrize("name", ["sdetr_r50", "lite_sdetr_r50"])
SIZES = [(96, 128), (128, 96)]  # (height, width)


@pytest.fixture
def images():
    return [torch.randn(3, *size, generator=torch.Generator().manual_seed(1)) for size in SIZES]


def gradients(model, criterion, images, targets):
    losses = criterion(model.train()(images, targets), targets)
    weighted_sum(losses, criterion.weight_dict).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def decoder_calls(model, images):
    """The content and the memory that each stage's decoder gets, and what it returns."""
    calls = []
    hooks = [stage.decoder.register_forward_hook(
        lambda _, args, decoded: calls.append((args[0].content, args[1], decoded.hidden))) for stage in model.stages]
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return calls


@BOTH
def test_outputs_of_all_layers_of_all_stages(build_sdetr, images, name):
    model = build_sdetr(name, dec_layers=[2, 3])[0].eval()
    with torch.no_grad():
        out = model(images)
    assert set(out) == {"pred_logits", "pred_boxes", "aux_outputs"} and len(out["aux_outputs"]) == 4
    for layer in [out, *out["aux_outputs"]]:
        assert layer["pred_logits"].shape == (2, 10, 8) and layer["pred_boxes"].shape == (2, 10, 4)
        assert layer["pred_boxes"].min() >= 0 and layer["pred_boxes"].max() <= 1


@BOTH
def test_content_passes_from_stage_to_stage(build_sdetr, images, name):
    """Stage 1 starts from nothing, stage 2 from the normed hidden state that stage 1 ends with."""
    (first, _, hidden), (second, _, _) = decoder_calls(build_sdetr(name)[0], images)
    assert not first.any() and hidden[-1].any()
    assert torch.equal(second, hidden[-1])


@BOTH
def test_the_last_stage_learns_through_the_first(build_sdetr, images, make_targets, name):
    """Without auxiliary losses, nothing but the content leads to stage 1: no detach in between."""
    model, criterion, _ = build_sdetr(name, aux_loss=False)
    grads = gradients(model, criterion, images, make_targets(2, 1))
    assert all(grads[key].any() for key in ("stages.0.decoder.layers.0.linear1.weight", "query_embed.0.weight"))


@BOTH
def test_a_stage_has_queries_of_its_own(build_sdetr, images, name):
    model = build_sdetr(name)[0].eval()
    with torch.no_grad():
        before = model(images)
        model.query_embed[1].weight.add_(1)
        after = model(images)
    torch.testing.assert_close(after["aux_outputs"][0]["pred_boxes"], before["aux_outputs"][0]["pred_boxes"])
    assert not torch.allclose(after["pred_boxes"], before["pred_boxes"])


@pytest.mark.parametrize("name, levels, shapes", [
    ("sdetr_r50", [[1], [0]], [[(4, 4)], [(8, 8)]]),
    ("sdetr_r50", [[1], [0], [0, 1]], [[(4, 4)], [(8, 8)], [(8, 8), (4, 4)]]),
    ("lite_sdetr_r50", [[2], [1]], [[(4, 4)], [(8, 8)]]),
    ("lite_sdetr_r50", [[2], [1], [0]], [[(4, 4)], [(8, 8)], [(16, 16)]]),
    ("lite_sdetr_r50", [[2, 3]], [[(4, 4), (2, 2)]]),
])
def test_each_stage_sees_only_its_levels(build_sdetr, images, name, levels, shapes):
    options = {"enc_layers": 1, "enc_nheads": 2} if name == "sdetr_r50" else {}
    model = build_sdetr(name, stage_levels=levels, dec_layers=1, **options)[0]
    calls = decoder_calls(model, images)
    assert [memory.shapes for _, memory, _ in calls] == shapes
    assert [memory.tokens.shape[1] for _, memory, _ in calls] == [sum(h * w for h, w in stage) for stage in shapes]


def test_lite_stages_read_the_tokens_of_one_encoder(build_sdetr, images):
    model = build_sdetr("lite_sdetr_r50")[0]
    encoded = []
    model.encoder.register_forward_hook(lambda _, args, features: encoded.append(features))
    calls = decoder_calls(model, images)
    (features,) = encoded
    for (_, memory, _), level in zip(calls, (2, 1), strict=True):
        start, end = features.level_start[level:level + 2]
        assert torch.equal(memory.tokens, features.tokens[:, start:end])
        assert torch.equal(memory.pos, features.pos[:, start:end])


def test_the_lite_encoder_does_not_update_what_no_stage_reads(build_sdetr, images):
    """Its last layer leaves stride 8 alone, unless a stage reads it; earlier blocks end with all tokens."""
    for levels, starts in (([[2], [1]], [0, 256]), ([[2], [1], [0]], [0, 0])):
        model, seen = build_sdetr("lite_sdetr_r50", stage_levels=levels, enc_layers=4, num_expansion=2)[0], []
        for layer in model.encoder.layers[1::2]:
            layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[3].shape[1] - args[0].shape[1]))
        decoder_calls(model, images)
        assert seen == starts


@pytest.mark.parametrize("name, options", [
    ("sdetr_r50", {}), ("sdetr_r50", {"pre_norm": True}), ("sdetr_r50", {"aux_loss": False}),
    ("sdetr_r50", {"stage_levels": [[1], [0], [0, 1]], "enc_layers": [1, 0, 1], "enc_nheads": 1, "dec_layers": 1}),
    ("sdetr_r50", {"position_embedding": "learned"}), ("lite_sdetr_r50", {}), ("lite_sdetr_r50", {"pre_norm": True}),
    ("lite_sdetr_r50", {"classification": "focal"}), ("lite_sdetr_r50", {"stage_levels": [[2], [1], [0]]}),
    ("lite_sdetr_r50", {"stage_levels": [[3], [2]], "enc_scale": 2}), ("lite_sdetr_r50", {"num_expansion": None}),
    ("lite_sdetr_r50", {"enc_scale": 2}),
], ids=str)
def test_gradients_reach_every_parameter(build_sdetr, images, make_targets, name, options):
    model, criterion, _ = build_sdetr(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():  # off the zeros that hide gradients
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    found = gradients(model, criterion, images, make_targets(2, 1))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    # Queries start without content: what weighs it in the first self-attention (a norm before it) has no effect yet.
    first = "stages.0.decoder.layers.0."
    still = first + ("norm1.weight" if options.get("pre_norm") else "self_attn.in_proj_weight")
    assert {key for key, gradient in found.items() if not (gradient.abs() > 1e-9).any()} <= {still}


def test_images_of_a_batch_do_not_mix(build_sdetr, images):
    for name in ("sdetr_r50", "lite_sdetr_r50"):
        model = build_sdetr(name)[0].eval()
        with torch.no_grad():
            out, swapped = model(images), model(images[::-1])
            nested = model(NestedTensor.from_list(images))
        for key in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(out[key], swapped[key].flip(0))
            assert torch.equal(out[key], nested[key])


@BOTH
def test_bfloat16_autocast(build_sdetr, images, make_targets, name):
    model, criterion, _ = build_sdetr(name)
    targets = make_targets(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.train()(images, targets)
    assert out["pred_logits"].dtype == out["pred_boxes"].dtype == torch.float32
    weighted_sum(criterion(out, targets), criterion.weight_dict).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@BOTH
def test_checkpointing_changes_nothing(build_sdetr, images, make_targets, name):
    results = []
    for recompute in (False, True):
        model, criterion, _ = build_sdetr(name, deformable_use_checkpoint=recompute)
        results.append(gradients(model, criterion, images, make_targets(2, 1)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


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
    # No stage reads what the last block's small feed-forward would update.
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
