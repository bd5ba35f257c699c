"""Process groups: of torchrun, torch.distributed.launch, or none for a single process."""
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from util.devices import usable_device
from util.errors import LostProcess, UserError

LOST = re.compile(r"gloo|Connection (closed|reset)|Broken pipe")  # gloo's errors have no type of their own


def init_distributed(device: str, world_size: int, rank: int, local_rank: int, dist_url: str,
                     timeout_minutes: float = 30) -> torch.device:
    """Joins the process group that the launcher's environment (or the arguments) describes, if there is one.

    Uses NCCL for cuda and gloo for cpu, and returns the device of this process. A process counts as lost if the others
    do not hear from it for `timeout_minutes`.
    """
    from_launcher = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if from_launcher:
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", local_rank))
    elif world_size > 1:
        if dist_url == "env://":
            raise UserError("--world_size without a launcher needs --dist_url tcp://HOST:PORT, the same everywhere")
        if not 0 <= rank < world_size:
            raise UserError(f"--rank {rank} must be from 0 to {world_size - 1}")
    target = usable_device(device)
    if target.type == "cuda":
        gpus = torch.cuda.device_count()
        if target.index is None:
            if not from_launcher and world_size > 1 and local_rank == 0:
                local_rank = rank % gpus
            target = torch.device("cuda", local_rank)
        if target.index >= gpus:
            raise UserError(f"process {rank} wants {target}, and this node has {gpus} GPUs: lower --nproc_per_node, or "
                            "choose another --device")
        torch.cuda.set_device(target)
    if world_size > 1 or from_launcher:
        timeout = timedelta(minutes=timeout_minutes)
        store, rank, world_size = next(dist.rendezvous(dist_url, rank, world_size, timeout=timeout))
        store.set_timeout(timeout)
        # torchrun may keep the store when it restarts the processes: addresses of the old ones must not be found.
        store = dist.PrefixStore("attempt " + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group("nccl" if target.type == "cuda" else "gloo", store=store, world_size=world_size,
                                rank=rank, timeout=timeout)
    return target


def data_parallel(model: nn.Module, device: torch.device, find_unused: bool = False, bf16: bool = False
                  ) -> DistributedDataParallel:
    """The model whose backward pass means the gradients over all processes. They are views of the buckets in which they
    travel; bf16: they travel in bfloat16. Buffers are sent once: no module of a detector changes its own. (A static
    graph would gain nothing: DDP looks at the graph with find_unused only, where it may change.)
    """
    parallel = DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None,
                                       find_unused_parameters=find_unused, gradient_as_bucket_view=True,
                                       broadcast_buffers=False)
    if bf16:
        parallel.register_comm_hook(None, bf16_compress_hook)
    return parallel


@contextmanager
def watch_for_lost_processes() -> Iterator[None]:
    """Raises LostProcess if another process is gone, as opposed to an error of this one."""
    try:
        yield
    except RuntimeError as error:
        if world_size() == 1 or not (isinstance(error, dist.DistError) or LOST.search(str(error))):
            raise
        raise LostProcess(f"lost contact with another process, look at its output: {error}. --resume auto "
                          "continues from the last checkpoint") from error


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def all_reduce_mean(x: Tensor) -> Tensor:
    """Mean of x over the ranks, on every rank."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / world_size()


def all_gather(item: Any) -> list[Any]:
    """The picklable `item` of every rank, on every rank."""
    if world_size() == 1:
        return [item]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, item)
    return gathered
