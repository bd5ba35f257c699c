"""Two gloo processes with one image each learn what one process learns from both."""
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models import build_model
from models.criterion import weighted_sum
from util.distributed import data_parallel


def batch(counts):
    """Images of one size with `counts` boxes; equal counts give both worlds the same denoising groups."""
    generator = torch.Generator().manual_seed(5)
    images = [torch.randn(3, 64, 96, generator=generator, dtype=torch.float64) for _ in counts]
    targets = [{"labels": torch.randint(1, 7, (n,), generator=generator),
                "boxes": torch.rand(n, 4, generator=generator, dtype=torch.float64) * 0.3 + 0.3} for n in counts]
    return images, targets


def gradients(config, images, targets, parallel=False, bf16=False):
    torch.manual_seed(0)
    model, criterion, _ = build_model(config)
    model.double().train(), criterion.double().train()
    wrapped = data_parallel(model, torch.device("cpu"), bf16=bf16) if parallel else model
    losses = criterion(wrapped(images, targets), targets)
    weighted_sum(losses, criterion.weight_dict).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


SMALL = {"return_interm_indices": [1], "num_feature_levels": 2}  # two of the backbone's stages
NO_NOISE = SMALL | {"dn_box_noise_scale": 0.0, "dn_label_noise_ratio": 0.0}


@pytest.fixture(scope="module")
def cases(tiny_dino, tiny_sdetr):
    """Configs, and the boxes of the two images. The focal loss counts boxes over all processes; softmax's mean is each
    process's own."""
    return {
        "denoising": (tiny_dino(**NO_NOISE), (3, 3)),
        "no denoising": (tiny_dino(use_dn=False, **SMALL), (5, 1)),
        "no box in one process": (tiny_dino(**NO_NOISE), (4, 0)),
        "sdetr": (tiny_sdetr("sdetr_r50", classification="focal"), (3, 1)),
        "lite sdetr": (tiny_sdetr("lite_sdetr_r50", classification="focal"), (3, 1)),
    }


def worker(rank, cases, address, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    found = {}
    for name, (config, counts) in cases.items():
        images, targets = batch(counts)
        found[name] = gradients(config, images[rank:rank + 1], targets[rank:rank + 1], parallel=True)
        if name == "denoising":
            found["bfloat16"] = gradients(config, images[rank:rank + 1], targets[rank:rank + 1], True, bf16=True)
    torch.save(found, f"{results}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(cases, tmp_path_factory):
    """Of both processes, the gradients of each case: starting processes takes longer than all cases."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(worker, (cases, os.fspath(folder / "meet"), os.fspath(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def assert_equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-10), name


@pytest.mark.parametrize("name", ["denoising", "no denoising", "sdetr", "lite sdetr"])
def test_two_processes_learn_what_one_learns(cases, found, name):
    config, counts = cases[name]
    alone = gradients(config, *batch(counts))
    for gradients_of_process in found:
        assert_equal_gradients(gradients_of_process[name], alone)


def test_one_process_without_boxes_still_gives_every_parameter_a_gradient(found):
    first, second = (gradients_of_process["no box in one process"] for gradients_of_process in found)
    assert_equal_gradients(first, second)
    assert all(gradient is not None for gradient in first.values())
    assert first["label_enc.weight"].abs().sum() > 0


def test_gradients_in_bfloat16_are_those_rounded(found):
    """Each addend and their mean keep 8 binary digits; the processes have the same."""
    exact, rounded = found[0]["denoising"], found[0]["bfloat16"]
    assert_equal_gradients(rounded, found[1]["bfloat16"])
    differing = 0
    for name, gradient in exact.items():
        differing += not torch.equal(rounded[name], gradient)
        assert (rounded[name] - gradient).norm() <= 2 ** -6 * gradient.norm() + 1e-10, name
    assert differing > len(exact) / 2
