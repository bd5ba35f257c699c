import pytest
import timm
import torch
import torch.nn.functional as F

from models.backbones.convnext import CONVNEXTS, ConvNeXt, build_convnext
from util.errors import UserError
from util.options import BackboneOptions

DIMS, DEPTHS = (8, 16, 24, 32), (1, 2, 3, 1)


def make(indices, **options):
    """Small, with random norms and weights of the residuals."""
    torch.manual_seed(0)
    model = ConvNeXt(DIMS, DEPTHS, indices, **options)
    for name, parameter in model.named_parameters():
        if "gamma" in name or parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5)
    return model


def timm_name(name):
    """The place of one of our tensors in timm's ConvNeXt."""
    kind, stage, rest = name.split(".", 2)
    if kind == "downsample_layers":
        return f"stem.{rest}" if stage == "0" else f"stages.{stage}.downsample.{rest}"
    rest = rest.replace("dwconv", "conv_dw").replace("pwconv1", "mlp.fc1").replace("pwconv2", "mlp.fc2")
    block, _, rest = rest.partition(".")
    return f"stages.{stage}.blocks.{block}.{rest}"


@pytest.mark.parametrize("size", [(64, 96), (75, 131)])
def test_equals_timm(size):
    """Its stages, and our norms after them; with sides that the strides do not divide."""
    model = make([0, 1, 2, 3]).eval()
    other = timm.models.ConvNeXt(depths=DEPTHS, dims=DIMS, num_classes=0).eval()
    state = {timm_name(name): x for name, x in model.state_dict().items() if not name.startswith("norm")}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        x, expected = other.stem(images), []
        for i, stage in enumerate(other.stages):
            x = stage(x)
            norm = model.get_submodule(f"norm{i}")
            expected.append(F.layer_norm(x.permute(0, 2, 3, 1), DIMS[i:i + 1], norm.weight, norm.bias, 1e-6)
                            .permute(0, 3, 1, 2))
        maps = model(images)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_names_are_those_of_the_published_checkpoints():
    names = set(make([1, 2, 3]).state_dict())
    assert {"downsample_layers.0.0.weight", "downsample_layers.0.1.bias", "downsample_layers.3.0.weight",
            "downsample_layers.3.1.weight", "stages.2.2.dwconv.weight", "stages.2.2.norm.bias", "stages.0.0.gamma",
            "stages.0.0.pwconv1.weight", "stages.0.0.pwconv2.bias", "norm0.weight", "norm3.bias"} < names


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (33, 97)])
def test_any_size(size):
    with torch.no_grad():
        maps = make([0, 1, 2, 3]).eval()(torch.randn(1, 3, *size))
    for i, x in enumerate(maps):
        assert x.shape == (1, DIMS[i], *(max(side // (4 * 2**i), 1) for side in size)) and x.isfinite().all()


@pytest.mark.parametrize("indices", [[1, 2, 3], [0, 1]])
def test_what_no_map_depends_on_is_frozen(indices):
    """Else DistributedDataParallel would stop. It stays in the checkpoints, as published."""
    model, everything = make(indices).train(), make([0, 1, 2, 3])
    assert set(model.state_dict()) == set(everything.state_dict())
    assert model.num_channels == [DIMS[i] for i in indices]
    images = torch.randn(1, 3, 64, 64)
    sum(x.square().sum() for x in model(images)).backward()
    assert [name for name, p in model.named_parameters() if (p.grad is None) == p.requires_grad] == []
    with torch.no_grad():
        torch.testing.assert_close(model(images), [everything(images)[i] for i in indices])


def test_checkpointing():
    results, images = [], torch.randn(2, 3, 64, 64)
    for recompute in (False, True):
        model = make([1, 2, 3], use_checkpoint=recompute).train()
        maps = model(images)
        sum(x.square().mean() for x in maps).backward()
        results.append((maps, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(results[1], results[0])


@pytest.fixture
def tiny(monkeypatch):
    """convnext_xlarge_22k with fewer channels and blocks."""
    monkeypatch.setitem(CONVNEXTS, "convnext_xlarge_22k", (DIMS, DEPTHS, "convnext_xlarge_22k_224.pth"))
    return "convnext_xlarge_22k"


def classifier(**changes):
    """Weights in the published layout: a norm and a head after the stages, no norms of maps."""
    state = {name: x for name, x in make([0, 1, 2, 3]).state_dict().items() if not name.startswith("norm")}
    state |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32), "head.weight": torch.ones(5, 32)}
    return {"model": {name: x for name, x in (state | changes).items() if x is not None}}


def test_published_weights(tiny, tmp_path):
    """From the folder that holds the published file; the norms of the maps begin as they are."""
    torch.save(classifier(), tmp_path / "convnext_xlarge_22k_224.pth")
    model = build_convnext(BackboneOptions(backbone=tiny, backbone_dir=str(tmp_path)))
    expected = make([1, 2, 3]).state_dict()
    for name, value in model.state_dict().items():
        wanted = torch.full_like(value, float("weight" in name)) if name.startswith("norm") else expected[name]
        assert torch.equal(value, wanted), name


@pytest.mark.parametrize("changes, words", [
    ({"stages.2.1.gamma": None}, "lacks 'stages.2.1.gamma'"),
    ({"stages.2.1.gamma": torch.ones(3)}, "another shape of 'stages.2.1.gamma'"),
])
def test_other_weights_are_refused(tiny, changes, words, tmp_path):
    torch.save(classifier(**changes), tmp_path / "other.pth")
    with pytest.raises(UserError, match=words):
        build_convnext(BackboneOptions(backbone=tiny, backbone_dir=str(tmp_path / "other.pth")))
