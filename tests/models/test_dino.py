import pytest
import torch

from models import build_model
from models.encoders.deformable import DeformableEncoder
from models.encoders.interleaved import CrossScaleLayer, InterleavedEncoder
from models.layers.deform_attn import DeformableAttention, KeyAwareDeformAttn, MSDeformAttn
from util.errors import UserError
from util.nested_tensor import NestedTensor

SIZES = [(64, 96), (96, 64)]  # (height, width)


def images(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def levels(count, stages, enc_scale):
    return {"num_feature_levels": count, "return_interm_indices": stages, "enc_scale": enc_scale}


def train(model, criterion, batch, targets):
    """Total loss and gradients of one training step."""
    torch.manual_seed(2)  # denoising and dropout
    model.train().zero_grad()
    losses = criterion(model(batch, targets), targets)
    total = sum(weight * losses[name] for name, weight in criterion.weight_dict.items())
    total.backward()
    return total.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def shake(model):
    """Moves every trained parameter off its initial value, which is zero in places that hide gradients."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def assert_close(ours, expected, **tolerance):
    assert ours.keys() == expected.keys()
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(ours[name], expected[name], **tolerance)


def test_outputs(build):
    model = build(dec_layers=3)[0].eval()
    with torch.no_grad():
        out = model(images(*SIZES))
    assert set(out) == {"pred_logits", "pred_boxes", "aux_outputs", "interm_outputs"}
    assert len(out["aux_outputs"]) == 2
    for layer in [out, *out["aux_outputs"], out["interm_outputs"]]:
        assert layer["pred_logits"].shape == (2, 20, 7) and layer["pred_boxes"].shape == (2, 20, 4)
        assert layer["pred_boxes"].min() >= 0 and layer["pred_boxes"].max() <= 1


def test_a_batch_of_images_of_one_size(build):
    model, batch = build()[0].eval(), torch.stack(images((64, 96), (64, 96)))
    with torch.no_grad():
        assert_close(model(batch), model(list(batch)))


def test_training_outputs_have_denoising_queries(build, make_targets):
    model = build(dec_layers=3)[0].train()
    out = model(images(*SIZES), make_targets(2, 1))
    meta = out["dn_meta"]  # 4 positive queries in groups of at most 2 objects
    assert (meta.num_groups, meta.group_size, meta.num_queries) == (2, 4, 8)
    assert set(out["dn_outputs"]) == {"", "_0", "_1"}
    for layer in out["dn_outputs"].values():
        assert layer["pred_logits"].shape == (2, 8, 7) and layer["pred_boxes"].shape == (2, 8, 4)
    for layer in [out, *out["aux_outputs"]]:
        assert layer["pred_logits"].shape == (2, 20, 7)


@pytest.mark.parametrize("training, counts, options", [
    (False, (2, 1), {}), (True, None, {}), (True, (0, 0), {}), (True, (2, 1), {"use_dn": False}),
])
def test_outputs_without_denoising_queries(build, make_targets, training, counts, options):
    model = build(**options)[0].train(training)
    out = model(images(*SIZES), counts and make_targets(*counts))
    assert set(out) == {"pred_logits", "pred_boxes", "aux_outputs", "interm_outputs"}


def test_denoising_queries_do_not_change_the_matched_ones(build, make_targets):
    model = shake(build()[0])
    batch = images(*SIZES)
    with torch.no_grad():
        trained, evaluated = model.train()(batch, make_targets(2, 1)), model.eval()(batch)
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(trained[name], evaluated[name])


def test_aux_loss_off_returns_the_last_layer_only(build, make_targets):
    model, criterion, _ = build(aux_loss=False, dec_layers=3)
    targets = make_targets(2, 1)
    out = model.train()(images(*SIZES), targets)
    assert out["aux_outputs"] == [] and set(out["dn_outputs"]) == {""}
    assert set(criterion.weight_dict) <= set(criterion(out, targets))


def test_nested_tensor_is_a_batch(build):
    model = shake(build()[0]).eval()
    batch = images(*SIZES)
    with torch.no_grad():
        assert_close(model(NestedTensor.from_list(batch)), model(batch), rtol=0, atol=0)


def test_images_of_a_batch_do_not_mix(build):
    """Another order, or another image of the same size beside it, leaves an image's outputs as they are."""
    model = shake(build()[0]).eval()
    first, second, other = images(*SIZES, SIZES[1])
    with torch.no_grad():
        out, swapped, beside = model([first, second]), model([second, first]), model([first, other])
    for name in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(out[name], swapped[name].flip(0))
        torch.testing.assert_close(out[name][0], beside[name][0])
        assert not torch.allclose(out[name][1], beside[name][1])


def test_padding_marks_the_same_part_on_every_level(build):
    """The levels made here by convolution, too, take their padding from the image's."""
    features = build(**levels(5, [2, 3], 2))[0].features(NestedTensor.from_list(images((128, 256), (64, 128))))
    assert features.shapes == [(8, 16), (4, 8), (2, 4), (1, 2), (1, 1)]
    ratios = torch.tensor([[1.0, 1.0], [0.5, 0.5]])
    torch.testing.assert_close(features.valid_ratios[:, :3], ratios[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(features.valid_ratios[1, 3:], torch.tensor([[0.5, 1.0], [1.0, 1.0]]))  # one pixel left
    valid = (~features.padding[1]).split([h * w for h, w in features.shapes])
    assert [int(level.sum()) for level in valid] == [32, 8, 2, 1, 1]


def test_positions_and_levels_are_told_apart(build):
    features = build(**levels(4, [2, 3], 2))[0].features(NestedTensor.from_list(images((128, 192))))
    pos = features.pos[0]
    assert len(pos.unique(dim=0)) == len(pos)


@pytest.mark.parametrize("training", [True, False])
def test_fewer_tokens_than_queries(build, make_targets, training):
    """A tiny image: 2x2 + 1 + 1 tokens."""
    model, criterion, post = build(hidden_dim=64)
    targets = make_targets(3)
    out = model.train(training)(images((32, 32)), targets)
    assert out["pred_logits"].shape == (1, 6, 7) and out["interm_outputs"]["pred_boxes"].shape == (1, 6, 4)
    assert all(loss.isfinite() for loss in criterion(out, targets).values())
    assert len(post["bbox"](out, torch.tensor([[32, 32]]))[0]["scores"]) == 20


def test_level_of_one_pixel_and_groups_of_one_channel(build):
    model = build(hidden_dim=32)[0].eval()
    with torch.no_grad():
        assert model(images((32, 32)))["pred_logits"].isfinite().all()


@pytest.mark.parametrize("counts", [(2, 3), (2, 0), (0, 0)])
def test_training_step(build, make_targets, counts):
    model, criterion, _ = build()
    total, gradients = train(model, criterion, images(*SIZES), make_targets(*counts))
    assert total.isfinite() and total > 0
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())


def test_targets_in_float64(build, make_targets):
    model, criterion, _ = build()
    targets = make_targets(2, 1)
    expected, _ = train(model, criterion, images(*SIZES), targets)
    double = [{"labels": t["labels"], "boxes": t["boxes"].double()} for t in targets]
    torch.testing.assert_close(train(model, criterion, images(*SIZES), double)[0], expected)


@pytest.mark.parametrize("options", [
    {}, {"key_aware": False}, {"proj_key": True}, {"same_loc": True}, {"same_loc": True, "key_aware": False},
    {"num_expansion": None}, {"small_expand": False}, {"num_expansion": 2}, {"embed_init_tgt": False},
    {"dec_pred_bbox_embed_share": False, "dec_pred_class_embed_share": False},
    {"two_stage_bbox_embed_share": True, "two_stage_class_embed_share": True},
    {"use_detached_boxes_dec_out": True, "dec_pred_bbox_embed_share": False}, {"dec_layers": 1}, {"aux_loss": False},
    {"hidden_dim": 48, "nheads": 3}, {"position_embedding": "learned"}, {"transformer_activation": "gelu"},
    levels(1, [3], 1) | {"small_expand": False}, levels(4, [1, 2, 3], 3), levels(5, [0, 1, 2, 3], 3), levels(5, [3], 3),
], ids=str)
def test_every_trained_parameter_has_a_gradient(build, make_targets, options):
    model, criterion, _ = build(**options)
    gradients = train(shake(model), criterion, images(*SIZES), make_targets(2, 0))[1]
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("counts, options", [
    ((0, 0), {}), ((2, 0), {"use_dn": False}), ((2, 0), {"no_interm_box_loss": True}), ((2, 0), {"enc_scale": 3}),
    ((0, 0), {"aux_loss": False}), ((2, 0), {"aux_loss": False, "use_dn": False}),
], ids=str)
def test_unused_parameters_have_a_gradient_of_zero(build, make_targets, counts, options):
    """Without one, DistributedDataParallel stops."""
    model, criterion, _ = build(**options)
    gradients = train(model, criterion, images(*SIZES), make_targets(*counts))[1]
    assert [name for name, gradient in gradients.items() if gradient is None] == []


def test_heads_that_no_loss_reaches_are_refused(build):
    with pytest.raises(UserError, match="aux_loss"):
        build(aux_loss=False, dec_pred_class_embed_share=False)


def test_frozen_parameters_have_no_gradient(build, make_targets):
    model, criterion, _ = build(lr_backbone=0)
    train(model, criterion, images(*SIZES), make_targets(2, 1))
    assert all(p.grad is None for p in model.backbone.parameters())


@pytest.mark.parametrize("options", [{}, {"num_expansion": None, "key_aware": False}, {"dropout": 0.2}], ids=str)
def test_checkpointing_changes_neither_loss_nor_gradients(build, make_targets, options):
    results = []
    for recompute in (False, True):
        model, criterion, _ = build(deformable_use_checkpoint=recompute, use_checkpoint=recompute, **options)
        results.append(train(shake(model), criterion, images(*SIZES), make_targets(2, 1)))
    (loss, gradients), (recomputed_loss, recomputed) = results
    torch.testing.assert_close(recomputed_loss, loss)
    torch.testing.assert_close(recomputed, gradients, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast(build, monkeypatch):
    model = shake(build()[0]).eval()
    batch = images(*SIZES)
    with torch.no_grad():
        memory = model.transformer.encoder(model.features(NestedTensor.from_list(batch)))
        proposals = model.transformer.select(memory, model.num_queries)
        # Rounding may change which tokens are best: both runs start from the same ones.
        monkeypatch.setattr(model.transformer, "select", lambda memory, count: proposals)
        expected = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch)
    for layer, full in zip([out, *out["aux_outputs"]], [expected, *expected["aux_outputs"]], strict=True):
        assert layer["pred_logits"].dtype == layer["pred_boxes"].dtype == torch.float32
        torch.testing.assert_close(layer["pred_boxes"], full["pred_boxes"], rtol=0, atol=0.005)
        spread = (full["pred_logits"] - full["pred_logits"].mean()).abs().max()
        assert (layer["pred_logits"] - full["pred_logits"]).abs().max() < 0.1 * spread
    assert not torch.equal(out["pred_logits"], expected["pred_logits"]), "autocast had no effect"


@pytest.mark.parametrize("options", [{}, {"key_aware": False}], ids=str)
def test_training_step_under_autocast(build, make_targets, options):
    model, criterion, _ = build(**options)
    targets = make_targets(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.train()(images(*SIZES), targets)
    layers = [out, *out["aux_outputs"], out["interm_outputs"], *out["dn_outputs"].values()]
    assert {layer[name].dtype for layer in layers for name in ("pred_logits", "pred_boxes")} == {torch.float32}
    losses = criterion(out, targets)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_float64(build, make_targets):
    model, criterion, _ = build()
    targets = make_targets(2, 1)
    out = model.double().train()([image.double() for image in images(*SIZES)], targets)
    assert out["pred_boxes"].dtype == out["pred_logits"].dtype == torch.float64
    assert {loss.dtype for loss in criterion(out, targets).values()} == {torch.float64}


@pytest.mark.parametrize("options, message", [
    ({"num_expansion": 2, "enc_layers": 3}, "num_expansion=2 must divide enc_layers=3"),
    ({"num_expansion": 0}, "num_expansion=0 must divide"),
    ({"num_expansion": -1}, "num_expansion=-1 must divide"),
    ({"enc_scale": 0}, "enc_scale=0 must be from 1 to num_feature_levels=3"),
    ({"enc_scale": 4}, "enc_scale=4 must be from 1 to num_feature_levels=3"),
    ({"nheads": 3}, "hidden_dim 32 is not a multiple of nheads 3"),
    ({"hidden_dim": 30, "nheads": 3}, "hidden_dim=30 must be a multiple of 4"),
    ({"num_feature_levels": 1}, "num_feature_levels=1 is fewer than the 2 maps"),
    ({"dn_labelbook_size": 6}, "dn_labelbook_size=6 is smaller than num_classes=7"),
    ({"pre_norm": True}, "pre_norm=True"),
    ({"classification": "softmax"}, "classification='softmax'"),
    ({"stage_levels": [[0]]}, "stage_levels"),
    ({"modelname": "dinno"}, "modelname='dinno' is unknown. Did you mean 'dino'"),
    ({"num_classes": "auto"}, "num_classes='auto' takes the classes from a data set"),
])
def test_options_that_make_no_model(build, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@pytest.mark.parametrize("num_expansion, small_expand, cross_scale", [
    (None, True, []), (2, True, [1, 3]), (1, True, [3]), (4, True, [0, 1, 2, 3]), (2, False, []),
])
def test_encoder(build, num_expansion, small_expand, cross_scale):
    encoder = build(enc_layers=4, num_expansion=num_expansion, small_expand=small_expand)[0].transformer.encoder
    if num_expansion is None:
        assert type(encoder) is DeformableEncoder
    else:
        assert type(encoder) is InterleavedEncoder
        assert encoder.block_length == 4 // num_expansion and encoder.enc_scale == 2
    assert [i for i, layer in enumerate(encoder.layers) if isinstance(layer, CrossScaleLayer)] == cross_scale


@pytest.mark.parametrize("key_aware, kind", [(True, KeyAwareDeformAttn), (False, MSDeformAttn),
                                             (None, KeyAwareDeformAttn)])
def test_attention_of_encoder_and_decoder(build, key_aware, kind):
    model = build(key_aware=key_aware, enc_n_points=3, dec_n_points=2)[0]
    attentions = [m for m in model.modules() if isinstance(m, DeformableAttention)]
    assert [type(m) for m in attentions] == [kind] * 4
    assert [m.num_points for m in attentions] == [3, 3, 2, 2]


@pytest.mark.parametrize("num_expansion", [None, 1])
def test_checkpointing_options(build, num_expansion):
    model = build(deformable_use_checkpoint=True, num_expansion=num_expansion)[0]
    transformer, features = model.transformer, model.backbone[0]
    assert (transformer.encoder.use_checkpoint, transformer.decoder.use_checkpoint, features.use_checkpoint) == (
        True, True, False)
    model = build(use_checkpoint=True, num_expansion=num_expansion)[0]
    transformer, features = model.transformer, model.backbone[0]
    assert (transformer.encoder.use_checkpoint, transformer.decoder.use_checkpoint, features.use_checkpoint) == (
        False, False, True)


@pytest.mark.parametrize("detach", [True, False])
def test_detached_boxes(build, detach):
    assert build(use_detached_boxes_dec_out=detach)[0].transformer.decoder.detach_boxes is detach


@pytest.mark.parametrize("size, rows", [(None, 8), (7, 8), (20, 21)])
def test_labelbook_size(build, size, rows):
    assert build(dn_labelbook_size=size)[0].label_enc.weight.shape == (rows, 32)


@pytest.mark.parametrize("shared", [True, False])
def test_heads_are_shared_or_not(build, shared):
    model = build(dec_pred_bbox_embed_share=shared, dec_pred_class_embed_share=shared,
                  two_stage_bbox_embed_share=shared, two_stage_class_embed_share=shared)[0]
    assert (model.bbox_embed[0] is model.bbox_embed[1]) is shared
    assert (model.class_embed[0] is model.class_embed[1]) is shared
    assert (model.transformer.enc_out_bbox_embed is model.bbox_embed[0]) is shared
    assert (model.transformer.enc_out_class_embed is model.class_embed[0]) is shared
    assert model.transformer.decoder.bbox_embed is model.bbox_embed


def test_first_predictions(build):
    """Boxes start at their references and every class at the prior of the focal loss."""
    model = build()[0].eval()
    with torch.no_grad():
        out = model([torch.randn(3, 96, 128)])
        for head in [*model.class_embed, model.transformer.enc_out_class_embed]:
            torch.testing.assert_close(head.bias.sigmoid(), torch.full((7,), 0.01))
        for layer in [*out["aux_outputs"], out["interm_outputs"]]:
            # inverse_sigmoid of the decoder clamps at 1e-3
            torch.testing.assert_close(layer["pred_boxes"], out["pred_boxes"], atol=2e-3, rtol=0)


def test_no_backbone_learning_rate_freezes_the_backbone(build):
    frozen, trained = build(lr_backbone=0)[0], build()[0]
    assert not any(p.requires_grad for p in frozen.backbone.parameters())
    assert any(p.requires_grad for p in trained.backbone.parameters())
    assert all(p.requires_grad for name, p in frozen.named_parameters() if not name.startswith("backbone."))


def test_loss_and_postprocess_options(build):
    _, criterion, post = build(set_cost_class=1.0, set_cost_bbox=2, set_cost_giou=3, focal_alpha=0.5, cls_loss_coef=7,
                               bbox_loss_coef=8, giou_loss_coef=9, interm_loss_coef=0.5, no_interm_box_loss=True,
                               num_select=11, nms_iou_threshold=0.6)
    matcher = criterion.matcher
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou, matcher.classification.alpha) == (1, 2, 3, 0.5)
    assert criterion.classification is matcher.classification
    weights = criterion.weight_dict
    assert [weights[f"loss_{name}_0"] for name in ("ce", "bbox", "giou")] == [7, 8, 9]
    assert [weights[f"loss_{name}_interm"] for name in ("ce", "bbox", "giou")] == [3.5, 0, 0]
    assert "loss_ce_dn" in weights and "loss_ce_dn" not in build(use_dn=False)[1].weight_dict
    assert (post["bbox"].num_select, post["bbox"].nms_iou_threshold) == (11, 0.6)


def test_a_plain_dict_is_a_config(tiny_config):
    assert isinstance(build_model(dict(tiny_config))[0], torch.nn.Module)
