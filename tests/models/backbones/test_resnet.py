import pytest
import torch
import torchvision
from torchvision.ops import FrozenBatchNorm2d

from models.backbones.resnet import ResNet, build_resnet
from util.errors import UserError
from util.options import BackboneOptions


@pytest.fixture(scope="module")
def published():
    """A torchvision ResNet-18 with random norms."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, mean=0.5, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture
def weight_file(published, tmp_path):
    torch.save(published.state_dict(), tmp_path / "resnet18-f37072fd.pth")
    return tmp_path


@pytest.mark.parametrize("name, indices, channels", [
    ("resnet18", [0, 1, 2, 3], [64, 128, 256, 512]), ("resnet18", [2], [256]), ("resnet50", [1, 3], [512, 2048]),
])
def test_strides_and_channels(name, indices, channels):
    model = ResNet(name, indices)
    assert model.num_channels == channels
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 65, 96))
    sizes = [(-(-65 // 2**(i + 2)), 96 // 2**(i + 2)) for i in indices]
    assert [tuple(x.shape) for x in maps] == [(1, c, *size) for c, size in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [1, 2], [3]])
def test_equals_torchvision_with_its_weights(published, weight_file, indices):
    model = build_resnet(BackboneOptions("resnet18", indices, backbone_dir=str(weight_file)))
    model.train()  # frozen norms do not care
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        x = published.maxpool(published.relu(published.bn1(published.conv1(images))))
        expected = []
        for i in range(4):
            x = published.get_submodule(f"layer{i + 1}")(x)
            if i in indices:
                expected.append(x)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_stages_after_the_last_one_used_are_left_out():
    stages = {name.split(".")[1] for name, _ in ResNet("resnet18", [0, 1]).named_parameters()}
    assert stages == {"conv1", "layer1", "layer2"}


def test_weights_of_another_resnet(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(UserError, match="resnet34.pth"):
        build_resnet(BackboneOptions("resnet18", backbone_dir=str(tmp_path / "resnet34.pth")))


def test_stem_first_stage_and_norms_are_not_trained():
    model = ResNet("resnet18", [1, 2, 3])
    frozen = {name for name, parameter in model.body.named_parameters() if not parameter.requires_grad}
    assert frozen and all(name.startswith(("conv1", "layer1")) for name in frozen)
    assert {name.split(".")[0] for name, p in model.body.named_parameters() if p.requires_grad} == {
        "layer2", "layer3", "layer4"}
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_dilation_keeps_stride_16():
    """DC5: the last stage has the map of the stage before it, and the same weights as without dilation."""
    dilated, plain = ResNet("resnet50", [2, 3], dilation=True), ResNet("resnet50", [2, 3])
    dilated.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (c4, c5), (plain_c4, plain_c5) = dilated(images), plain(images)
    assert c4.shape == (1, 1024, 4, 4) and c5.shape == (1, 2048, 4, 4) and plain_c5.shape == (1, 2048, 2, 2)
    torch.testing.assert_close(c4, plain_c4)
    assert dilated.num_channels == [1024, 2048]


def test_checkpointing():
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = ResNet("resnet18", [2, 3], use_checkpoint=recompute).train()
        calls = []
        model.body.layer3[0].conv1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        maps = model(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
        sum(x.square().mean() for x in maps).backward()
        assert len(calls) == 1 + recompute
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append((maps, gradients))
    torch.testing.assert_close(results[1], results[0])
    assert all(gradient.any() for gradient in results[0][1].values())
