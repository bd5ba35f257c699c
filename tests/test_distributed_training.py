"""Two gloo processes with one image each learn what one process learns from both."""
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from models import build_model
from models.criterion import weighted_sum


def batch(counts):
    """Images of one size with `counts` boxes; equal counts give both worlds the same denoising groups."""
    generator = torch.Generator().manual_seed(5)
    images = [torch.randn(3, 64, 96, generator=generator, dtype=torch.float64) for _ in counts]
    targets = [{"labels": torch.randint(1, 7, (n,), generator=generator),
                "boxes": torch.rand(n, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.3} for n in counts]
    return images, targets


def gradients(config, images, targets, parallel=False):
    torch.manual_seed(0)
    model, criterion, _ = build_model(config)
    model.double().train(), criterion.double().train()
    wrapped = DistributedDataParallel(model) if parallel else model
    losses = criterion(wrapped(images, targets), targets)
    weighted_sum(losses, criterion.weight_dict).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def worker(rank, config, counts, address, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=len(counts))
    images, targets = batch(counts)
    found = gradients(config, images[rank:rank + 1], targets[rank:rank + 1], parallel=True)
    torch.save(found, f"{results}/{rank}.pth")
    dist.destroy_process_group()


def spawn(config, counts, tmp_path):
    """The gradients of every process."""
    mp.spawn(worker, (config, counts, os.fspath(tmp_path / "meet"), os.fspath(tmp_path)), nprocs=len(counts))
    return [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(len(counts))]


def assert_equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-10), name


NO_NOISE = {"dn_box_noise_scale": 0.0, "dn_label_noise_ratio": 0.0}


def test_with_denoising(tiny_config, tmp_path):
    config = tiny_config | NO_NOISE
    alone = gradients(config, *batch((3, 3)))
    for found in spawn(config, (3, 3), tmp_path):
        assert_equal_gradients(found, alone)


def test_without_denoising_whatever_the_box_counts(tiny_config, tmp_path):
    config = tiny_config | {"use_dn": False}
    alone = gradients(config, *batch((5, 1)))
    for found in spawn(config, (5, 1), tmp_path):
        assert_equal_gradients(found, alone)


@pytest.mark.parametrize("name", ["sdetr_r50", "lite_sdetr_r50"])
def test_stages(tiny_sdetr, tmp_path, name):
    """No parameter is unused. The focal loss counts boxes over all processes; softmax's mean is each process's own."""
    config = tiny_sdetr(name, classification="focal")
    alone = gradients(config, *batch((3, 1)))
    for found in spawn(config, (3, 1), tmp_path):
        assert_equal_gradients(found, alone)


def test_one_process_without_boxes_still_gives_every_parameter_a_gradient(tiny_config, tmp_path):
    first, second = spawn(tiny_config | NO_NOISE, (4, 0), tmp_path)
    assert_equal_gradients(first, second)
    assert all(gradient is not None for gradient in first.values())
    assert first["label_enc.weight"].abs().sum() > 0
