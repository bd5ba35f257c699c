import pytest
import torch
import torch.nn.functional as F
from torchvision.models import SwinTransformer as TorchvisionSwin

from models.backbones.swin import SWINS, SwinTransformer, build_swin
from util.errors import UserError
from util.options import BackboneOptions

DIM, DEPTHS, HEADS, WINDOW = 24, (2, 2, 2, 2), (1, 2, 4, 8), 7
TINY = (DIM, DEPTHS, HEADS, WINDOW, "swin_tiny_patch4_window7_224.pth")


def make(indices, **options):
    """Small, with random relative position biases and norms."""
    torch.manual_seed(0)
    model = SwinTransformer(DIM, DEPTHS, HEADS, WINDOW, indices, **options)
    for name, parameter in model.named_parameters():
        if "bias_table" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5)
    return model


def torchvision_name(name):
    """The place of one of our tensors in torchvision's Swin, or None."""
    part, _, rest = name.partition(".")
    if part == "patch_embed":
        return "features.0." + rest.replace("proj.", "0.").replace("norm.", "2.")
    if part == "layers":
        stage, kind, rest = rest.split(".", 2)
        if kind == "downsample":
            return f"features.{2 * int(stage) + 2}.{rest}"
        rest = rest.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        return f"features.{2 * int(stage) + 1}.{rest}"
    return None  # norms of the returned maps


def as_torchvision(model):
    """torchvision's Swin with a model's weights: its stages, to run one after the other."""
    other = TorchvisionSwin([4, 4], DIM, list(DEPTHS), list(HEADS), [WINDOW, WINDOW], num_classes=1).eval()
    state = {torchvision_name(name): x for name, x in model.state_dict().items() if torchvision_name(name)}
    state = {name: x.flatten() if name.endswith("position_index") else x for name, x in state.items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith(("norm.", "head.")) for name in missing)
    return other.features


@pytest.mark.parametrize("size", [(228, 260), (225, 259), (256, 232)])
def test_equals_torchvision(size):
    """Maps with odd sides too. (Below a window, torchvision does not shift; the published detectors do.)"""
    model = make([0, 1, 2, 3]).eval()
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        x, expected = F.pad(images, (0, -size[1] % 4, 0, -size[0] % 4)), []
        for i, part in enumerate(as_torchvision(model)):
            x = part(x)
            if i % 2:
                expected.append(model.get_submodule(f"norm{i // 2}")(x).permute(0, 3, 1, 2))
        maps = model(images)
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (33, 97), (100, 61)])
def test_any_size(size):
    model = make([0, 1, 2, 3]).eval()
    with torch.no_grad():
        maps = model(torch.randn(2, 3, *size))
    for i, x in enumerate(maps):
        stride = 4 * 2**i
        assert x.shape == (2, DIM * 2**i, -(-size[0] // stride), -(-size[1] // stride))
        assert x.isfinite().all()


def test_images_of_a_batch_do_not_mix():
    model, images = make([3]).eval(), torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        alone = torch.cat([model(image[None])[0] for image in images])
        torch.testing.assert_close(model(images)[0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("indices", [[1, 2, 3], [2, 3], [0, 1]])
def test_chosen_stages(indices):
    model, everything = make(indices).eval(), make([0, 1, 2, 3]).eval()
    model.load_state_dict({name: x for name, x in everything.state_dict().items() if name in model.state_dict()})
    assert model.num_channels == [DIM * 2**i for i in indices]
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), [everything(images)[i] for i in indices])


@pytest.mark.parametrize("indices", [[1, 2, 3], [0, 1]])
def test_every_parameter_has_a_gradient(indices):
    """Stages after the last one used would have none, and stop DistributedDataParallel."""
    model = make(indices).train()
    sum(x.square().sum() for x in model(torch.randn(1, 3, 64, 64))).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_checkpointing():
    """With the same random paths dropped."""
    results, images = [], torch.randn(2, 3, 64, 64)
    for recompute in (False, True):
        model = make([1, 2, 3], drop_path=0.5, use_checkpoint=recompute).train()
        calls = []
        model.layers[0].blocks[0].mlp.fc1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(1)
        maps = model(images)
        sum(x.square().mean() for x in maps).backward()
        assert len(calls) == 1 + recompute
        results.append((maps, {name: parameter.grad for name, parameter in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0])


def test_paths_are_dropped_in_training_only():
    model, images = make([3], drop_path=0.5), torch.randn(4, 3, 64, 64)
    assert not torch.equal(model.train()(images)[0], model(images)[0])
    assert torch.equal(model.eval()(images)[0], model(images)[0])


def test_drop_rates_grow_with_depth():
    rates = [block.drop_path.p for layer in make([3], drop_path=0.7).layers for block in layer.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


@pytest.fixture
def tiny_swin(monkeypatch):
    """swin_T_224_1k with fewer channels."""
    monkeypatch.setitem(SWINS, "swin_T_224_1k", TINY)
    return "swin_T_224_1k"


def published(**changes):
    """A classifier's weights in the published layout, with masks for its fixed image size and a head."""
    state = {name: x for name, x in make([0, 1, 2, 3]).state_dict().items() if not name.startswith("norm")}
    state |= {"norm.weight": torch.ones(8 * DIM), "norm.bias": torch.zeros(8 * DIM),
              "head.weight": torch.ones(5, 8 * DIM), "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}
    return {"model": {name: x for name, x in (state | changes).items() if x is not None}}


@pytest.mark.parametrize("indices", [[1, 2, 3], [0, 1]])
def test_published_weights(tiny_swin, tmp_path, indices):
    torch.save(published(), tmp_path / TINY[-1])
    model = build_swin(BackboneOptions(tiny_swin, indices, backbone_dir=str(tmp_path)))
    weights = published()["model"]
    for name, x in model.state_dict().items():
        if name.startswith("norm"):
            assert torch.equal(x, torch.full_like(x, float(name.endswith("weight"))))
        else:
            assert torch.equal(x, weights[name]), name


@pytest.mark.parametrize("changes", [
    {"patch_embed.proj.weight": None}, {"layers.1.blocks.0.attn.qkv.weight": torch.zeros(1, 1)},
], ids=["missing", "another shape"])
def test_weights_that_do_not_fit(tiny_swin, tmp_path, changes):
    torch.save(published(**changes), tmp_path / TINY[-1])
    with pytest.raises(UserError, match=next(iter(changes))):
        build_swin(BackboneOptions(tiny_swin, backbone_dir=str(tmp_path)))


def test_local_weights_that_are_not_there(tiny_swin, tmp_path):
    with pytest.raises(UserError, match=f"no file {tmp_path}/{TINY[-1]}; download https://"):
        build_swin(BackboneOptions(tiny_swin, backbone_dir=str(tmp_path)))


def test_known_sizes():
    """Channels, blocks and heads of the paper's table 7; a head has 32 channels."""
    assert {name: SWINS[name][0] for name in SWINS} == {
        "swin_T_224_1k": 96, "swin_B_224_22k": 128, "swin_B_384_22k": 128, "swin_L_224_22k": 192, "swin_L_384_22k": 192}
    for name, (dim, depths, heads, window, file) in SWINS.items():
        assert depths == ((2, 2, 6, 2) if "_T_" in name else (2, 2, 18, 2))
        assert heads == tuple(dim * 2**i // 32 for i in range(4))
        assert f"window{window}" in file and window == (12 if "384" in name else 7)
