"""Two real gloo processes, and a single one that needs no group."""
import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist

from util.distributed import all_gather, all_reduce_mean, barrier, init_distributed, is_main, rank, world_size
from util.errors import UserError

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def check_group(folder):
    x = torch.tensor([1.0, 10.0]) * (rank() + 1)
    assert all_reduce_mean(x).tolist() == [1.5, 15.0]
    assert x.tolist() == [rank() + 1, 10 * (rank() + 1)]
    assert all_reduce_mean(torch.tensor(rank())).item() == 0.5
    items = [{"rank": 0}, {"rank": 1, "more": list(range(1000))}]
    assert all_gather(items[rank()]) == items
    if is_main():
        folder.mkdir()
    barrier()
    assert folder.is_dir()
    assert dist.get_backend() == "gloo" and world_size() == 2
    dist.destroy_process_group()
    assert world_size() == 1 and is_main()


def join_twice(mine, folder):
    """One of two processes: forms a group as the launcher's environment says, then as the arguments say."""
    torch.set_num_threads(1)  # the parent's threads do not survive the fork
    os.environ.update(zip(LAUNCHER, (str(mine), "2", str(mine)), strict=True))
    place = init_distributed("cpu", 1, 0, 0, f"file://{folder}/environment")
    assert place == torch.device("cpu") and rank() == mine and is_main() == (mine == 0)
    check_group(folder / "first")
    for name in LAUNCHER:
        del os.environ[name]
    init_distributed("cpu", 2, mine, mine, f"file://{folder}/arguments")
    assert rank() == mine
    check_group(folder / "second")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def test_two_processes_form_a_group(tmp_path):
    context = multiprocessing.get_context("fork")  # does not import torch again
    processes = [context.Process(target=join_twice, args=(i, tmp_path), daemon=True) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def test_one_process_needs_no_group():
    assert init_distributed("cpu", 1, 0, 0, "env://") == torch.device("cpu")
    assert not dist.is_initialized()
    assert (world_size(), rank(), is_main()) == (1, 0, True)
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(all_reduce_mean(x), x)
    assert all_gather({"a": 1}) == [{"a": 1}]
    barrier()


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_without_cuda_is_an_error_that_names_the_way_out(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="--device cpu"):
        init_distributed(device, 1, 0, 0, "env://")


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--nproc_per_node"):
        init_distributed("cuda", 2, 1, 1, "tcp://localhost:1")


@pytest.mark.parametrize("device, local, wanted", [("cuda", "2", "cuda:2"), ("cuda:1", "2", "cuda:1")])
def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch, device, local, wanted):
    joined, chosen = [], []
    for name, value in zip(LAUNCHER, ("6", "8", local), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "rendezvous", lambda url, rank, world_size, timeout: iter(
        [(dist.HashStore(), rank, world_size)]))
    monkeypatch.setattr(dist, "init_process_group",
                        lambda backend, **group: joined.append((backend, group)))
    assert init_distributed(device, 1, 0, 0, "env://") == torch.device(wanted)
    (backend, group), = joined
    assert (backend, group["rank"], group["world_size"]) == ("nccl", 6, 8)
    assert chosen == [torch.device(wanted)]
