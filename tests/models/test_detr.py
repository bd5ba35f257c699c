import pytest
import torch

from models import build_model
from models.criterion import weighted_sum
from util.config import load_config

SIZES = [(64, 96), (96, 64)]  # (height, width)


def images():
    return [torch.randn(3, *size, generator=torch.Generator().manual_seed(1)) for size in SIZES]


@pytest.mark.parametrize("options", [{}, {"pre_norm": True}, {"position_embedding": "learned"}, {"aux_loss": False},
                                     {"backbone": "resnet50", "dilation": True}], ids=str)
def test_training_step(build_sdetr, make_targets, options):
    model, criterion, _ = build_sdetr("detr_r50", enc_layers=2, dec_layers=2, **options)
    targets = make_targets(2, 0)
    out = model.train()(images(), targets)
    assert out["pred_logits"].shape == (2, 10, 8) and len(out["aux_outputs"]) == options.get("aux_loss", True)
    weighted_sum(criterion(out, targets), criterion.weight_dict).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_dilation_has_four_times_the_tokens(build_sdetr):
    tokens = []
    for name in ("detr_r50", "detr_r50_dc5"):
        model = build_sdetr(name, backbone="resnet50", enc_layers=1, dec_layers=1)[0].eval()
        model.transformer.register_forward_pre_hook(lambda _, args: tokens.append(args[0].tokens.shape[1]))
        with torch.no_grad():
            model([torch.randn(3, 128, 64)])
    assert tokens == [4 * 2, 8 * 4]


def test_padding_has_no_influence(build_sdetr):
    """An image alone, and beside a larger one: C5's padding is masked, and stride 32 divides the images."""
    model = build_sdetr("detr_r50", enc_layers=1, dec_layers=1)[0].eval()
    small, large = torch.randn(3, 64, 64), torch.randn(3, 128, 160)
    with torch.no_grad():
        masked = model.transformer
        seen = []
        masked.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model([small, large])
    assert seen[0].padding[0].view(4, 5)[:2, :2].logical_not().all() and seen[0].padding[0].sum() == 16
    other = seen[0].with_tokens(seen[0].tokens + 5 * seen[0].padding[..., None])
    with torch.no_grad():
        first, second = (model.transformer(x, model.query_embed.weight)[-1] for x in (seen[0], other))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name, parameters", [("detr_r50", 41524768), ("detr_r50_dc5", 41524768)])
def test_the_published_detr(name, parameters):
    model = build_model(load_config(f"config/SDETR/{name}.py", {"pretrained_backbone": False}))[0]
    for part in (model.transformer.encoder, model.transformer.decoder):
        assert [layer.self_attn.num_heads for layer in part.layers] == [8] * 6
    assert sum(p.numel() for p in model.parameters()) == parameters
