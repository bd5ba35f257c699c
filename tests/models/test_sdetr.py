"""SDETR, and Lite-SDETR, its stages over the interleaved encoder."""
import pytest
import torch

from models.criterion import weighted_sum
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
    hooks = [stage.decoder.register_forward_hook(lambda _, args, hidden: calls.append((args[0], args[2], hidden)))
             for stage in model.stages]
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
