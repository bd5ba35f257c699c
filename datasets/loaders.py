"""Data sets and their loaders."""
import contextlib
import os
import pickle
import re
import time
import traceback
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler
from torch.utils.data import dataloader as torch_loader

from datasets.coco import CocoDetection, collate
from datasets.phases import Sample
from util.cpu import keep_freed_memory
from util.distributed import rank, world_size
from util.errors import UserError
from util.signals import ignore_in_worker


class TrainBatches(Sampler):
    """Shuffled batches of one process: pass after pass over the images, cut into `epochs` epochs of `epoch_batches`
    batches (None: one pass). The order depends only on the seed, and can start within an epoch.
    """

    def __init__(self, dataset: CocoDetection, batch_size: int, seed: int, epoch_batches: int | None = None,
                 epochs: int = 1):
        self.sampler: DistributedSampler = DistributedSampler(dataset, num_replicas=world_size(), rank=rank(),
                                                              shuffle=True, seed=seed)
        self.batches = BatchSampler(self.sampler, batch_size, drop_last=len(self.sampler) >= batch_size)
        self.epoch_batches = epoch_batches or len(self.batches)
        self.all_batches = epochs * self.epoch_batches
        self.epoch = self.first_batch = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Chooses the epoch, and its first batch."""
        self.epoch, self.first_batch = epoch, first_batch

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch_start = self.epoch * self.epoch_batches
        batch_index, end = epoch_start + self.first_batch, epoch_start + self.epoch_batches
        while batch_index < end:
            repetition, first = divmod(batch_index, len(self.batches))
            self.sampler.set_epoch(repetition)
            for batch in islice(self.batches, first, first + end - batch_index):
                yield [Sample(index, repetition, batch_index / self.all_batches) for index in batch]
                batch_index += 1

    def __len__(self) -> int:
        return self.epoch_batches - self.first_batch


class DetectionLoader(DataLoader):
    """Batches as `collate` makes them."""

    dataset: CocoDetection


class TrainLoader(DetectionLoader):
    batch_sampler: TrainBatches


def train_loader(dataset: CocoDetection, batch_size: int, num_workers: int, seed: int,
                 epoch_batches: int | None = None, pad_multiple: int = 1, epochs: int = 1) -> TrainLoader:
    """epochs: how many the training has, of which each sample knows how far it is."""
    return TrainLoader(dataset, batch_sampler=TrainBatches(dataset, batch_size, seed, epoch_batches, epochs),
                       **_settings(dataset, num_workers, pad_multiple))


def eval_loader(dataset: CocoDetection, batch_size: int, num_workers: int) -> DetectionLoader:
    """Every process reads its own share of the images, none twice."""
    share = range(rank(), len(dataset), world_size())
    return DetectionLoader(dataset, batch_sampler=BatchSampler(share, batch_size, drop_last=False),
                           **_settings(dataset, num_workers))


class FirstBatches:
    """The first `count` batches of a loader."""

    def __init__(self, loader: DetectionLoader, count: int):
        self.loader, self.count = loader, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        return islice(self.loader, self.count)


@contextlib.contextmanager
def worker_crash_as_user_error(loader: DetectionLoader) -> Iterator[None]:
    """Names the image that a data-loading process was reading when it died. The loader's processes start within."""
    loader.dataset.reading.zero_()  # processes of an earlier pass have ended
    try:
        yield
    except Exception as error:
        try:
            crash = _crash(error, loader.dataset)
        except RuntimeError as from_handler:  # torch raises it from a signal handler, wherever this process is
            crash = _crash(from_handler, loader.dataset)
        if crash is None:
            raise
        files = ", ".join(str(path) for path in loader.dataset.being_read(crash))
        where, advice = ((f"while it was reading {files}", "Check that file; if it is intact, memory") if files
                         else ("between two images", "Memory"))
        raise UserError(f"a data-loading process died {where}: {crash.rstrip('. ')}. {advice} may have run out (lower "
                        "--num_workers)") from error


def _crash(error: Exception, dataset: CocoDetection) -> str | None:
    """A text with the id of the dead data-loading process that an error comes from; None if it comes from elsewhere."""
    if re.match(r"DataLoader worker \(pid", str(error)):
        return str(error)
    broken_connection = isinstance(error, OSError | EOFError | RuntimeError | pickle.UnpicklingError)
    if not broken_connection or str(error).startswith("Caught ") or not _is_from_loader(error):
        return None  # "Caught": raised in a data-loading process, which lives
    for _ in range(20):  # a process that ends closes its connections first
        if dead := [process for process in dataset.reading[:, 0].tolist() if process and _has_ended(process)]:
            return f"DataLoader worker (pid {dead[0]}) exited unexpectedly."
        time.sleep(0.05)
    return None


def _is_from_loader(error: Exception) -> bool:
    """As opposed to what is done with the batches: such an error makes the loader end its processes itself."""
    return any(frame.f_code.co_filename == torch_loader.__file__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _has_ended(process: int) -> bool:
    """Of a child process, which may be waited for elsewhere too."""
    try:
        return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _settings(dataset: CocoDetection, num_workers: int, pad_multiple: int = 1) -> dict[str, Any]:
    dataset.watch_workers(num_workers)
    # The loader has its own generator: starting workers must not change the training's random state.
    return {"collate_fn": partial(collate, multiple=pad_multiple), "num_workers": num_workers,
            "pin_memory": torch.cuda.is_available(), "generator": torch.Generator(),
            "worker_init_fn": _prepare_worker}


def _prepare_worker(number: int) -> None:
    ignore_in_worker(number)
    keep_freed_memory()  # each image takes and frees tens of MB
