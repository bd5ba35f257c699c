"""What the model tests share: tiny detectors, and tokens to feed to parts of them."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models import build_model
from models.structures import FlatFeatures
from util.config import load_config
from util.nested_tensor import NestedTensor


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class KernelCounter(TorchDispatchMode):
    """Counts torch's calls of operators."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def count_kernels():
    """count_kernels(function, *args): how many of torch's operators function(*args) calls."""
    def count_kernels(function, *args):
        with KernelCounter() as counter:
            function(*args)
        return counter.count

    return count_kernels


@pytest.fixture
def build(tiny_config):
    """build(**options): model, criterion and post-processors of the tiny config with these options."""
    def build(**options):
        torch.manual_seed(0)
        return build_model({**tiny_config, **options})

    return build


@pytest.fixture
def build_sdetr(tiny_sdetr):
    """build_sdetr(name, **options): model, criterion and post-processors of the small config/SDETR/<name>.py."""
    def build(name, **options):
        torch.manual_seed(0)
        return build_model(tiny_sdetr(name, **options))

    return build


@pytest.fixture
def build_deformable(tiny_config):
    """build_deformable(**options): model, criterion and post-processors of a small Deformable DETR."""
    def build_deformable(**options):
        torch.manual_seed(0)
        names = ("pretrained_backbone", "backbone", "return_interm_indices", "num_feature_levels", "hidden_dim",
                 "nheads", "dim_feedforward", "enc_layers", "enc_scale", "dec_layers", "num_classes")
        small = {name: tiny_config[name] for name in names} | {"num_queries": 12, "num_select": 10, "dropout": 0.0}
        return build_model(load_config("config/DeformableDETR/r50.py", small | options))

    return build_deformable


@pytest.fixture
def make_targets():
    """make_targets(counts): random targets, one image a count."""
    def make(*counts, num_classes=7):
        generator = torch.Generator().manual_seed(3)
        return [{"labels": torch.randint(num_classes, (n,), generator=generator),
                 "boxes": torch.rand(n, 4, generator=generator) * 0.3 + torch.tensor([0.35, 0.35, 0.1, 0.1])}
                for n in counts]

    return make


@pytest.fixture
def make_features():
    """make_features(shapes, dim, valid): random tokens. valid holds an image's (rows, columns) without padding on the
    last level, twice as many on the level before it, and so on; by default one image without padding."""
    def make(shapes, dim=8, valid=None, dtype=torch.float32):
        generator = torch.Generator().manual_seed(4)
        valid = valid or [shapes[-1]]
        maps, positions = [], []
        for level, shape in enumerate(shapes):
            scale = 2 ** (len(shapes) - 1 - level)
            mask = torch.ones(len(valid), *shape, dtype=torch.bool)
            for image, (rows, columns) in zip(mask, valid, strict=True):
                image[: rows * scale, : columns * scale] = False
            size = len(valid), dim, *shape
            maps.append(NestedTensor(torch.randn(size, generator=generator, dtype=dtype), mask))
            positions.append(torch.randn(size, generator=generator, dtype=dtype))
        return FlatFeatures.flatten(maps, positions, torch.randn(len(shapes), dim, generator=generator, dtype=dtype))

    return make
