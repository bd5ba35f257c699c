import torch
import torchvision
from timm.layers import BatchNormAct2d
from torch import nn

from models.layers.frozen_batch_norm import FrozenBatchNorm2d, freeze_batch_norm


def randomised(norm: nn.Module) -> nn.Module:
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return norm


def test_normalises_as_torchvision_does():
    theirs = randomised(torchvision.ops.FrozenBatchNorm2d(5))
    ours = FrozenBatchNorm2d(5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 4, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    gradient = torch.randn_like(x)
    grads = [torch.autograd.grad(norm(x.requires_grad_()), x, gradient)[0] for norm in (ours, theirs)]
    torch.testing.assert_close(*grads)
    assert not ours(x.detach()).requires_grad


def test_the_backward_pass_keeps_no_map():
    norm, x, kept = randomised(FrozenBatchNorm2d(5)), torch.randn(2, 5, 4, 3, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        norm(x)
    assert kept and set(kept) == {(5,)}


def test_compiles_and_exports():
    norm, x = randomised(FrozenBatchNorm2d(5)), torch.randn(2, 5, 4, 3, requires_grad=True)
    y = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(y, norm(x))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(norm(x).sum(), x))
    torch.testing.assert_close(torch.export.export(norm, (x.detach(),)).module()(x.detach()), norm(x))


def test_half_precision_maps_stay_half_precision():
    norm = randomised(FrozenBatchNorm2d(5))
    x = torch.randn(2, 5, 4, 3)
    y = norm(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), norm(x), rtol=0.02, atol=0.02)


def test_freezing_keeps_values_and_names_and_takes_the_weights_out_of_training():
    plain, with_activation = randomised(nn.BatchNorm2d(4)), randomised(BatchNormAct2d(4, act_layer=nn.ReLU6))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), plain, nn.Sequential(with_activation)).eval()
    x = torch.randn(2, 3, 5, 5)
    before, names = model(x), {n for n in model.state_dict() if "num_batches" not in n}
    freeze_batch_norm(model)
    torch.testing.assert_close(model.train()(x), before)
    assert set(model.state_dict()) == names
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert before.min() == 0  # the activation is there
