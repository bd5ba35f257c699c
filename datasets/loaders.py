"""Data sets and their loaders."""
import contextlib
from collections.abc import Iterator
from functools import partial
from itertools import islice

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler

from datasets.coco import CocoDetection, collate
from util.distributed import rank, world_size
from util.errors import UserError
from util.signals import ignore_in_worker


class TrainBatches(Sampler):
    """Shuffled batches of one process: pass after pass over the images, cut into epochs of `epoch_batches` batches
    (None: of one pass). The order follows from the seed alone, and can start in mid-epoch.

    A sample's number is its image's index plus the length of the set for each pass before.
    """

    def __init__(self, dataset: CocoDetection, batch_size: int, seed: int, epoch_batches: int | None = None):
        self.images = len(dataset)
        self.sampler = DistributedSampler(dataset, num_replicas=world_size(), rank=rank(), shuffle=True, seed=seed)
        self.batches = BatchSampler(self.sampler, batch_size, drop_last=len(self.sampler) >= batch_size)
        self.epoch_batches = epoch_batches or len(self.batches)
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch, and the batch of it to start with."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[int]]:
        number, end = (self.epoch * self.epoch_batches + batches for batches in (self.start, self.epoch_batches))
        while number < end:
            repetition, first = divmod(number, len(self.batches))
            self.sampler.set_epoch(repetition)
            for batch in islice(self.batches, first, first + end - number):
                yield [index + repetition * self.images for index in batch]
                number += 1

    def __len__(self) -> int:
        return self.epoch_batches - self.start


def train_loader(dataset: CocoDetection, batch_size: int, num_workers: int, seed: int,
                 epoch_batches: int | None = None, pad_multiple: int = 1) -> DataLoader:
    return _loader(dataset, TrainBatches(dataset, batch_size, seed, epoch_batches), num_workers, pad_multiple)


def eval_loader(dataset: CocoDetection, batch_size: int, num_workers: int) -> DataLoader:
    """Every process reads its own share of the images, none twice."""
    share = range(rank(), len(dataset), world_size())
    return _loader(dataset, BatchSampler(share, batch_size, drop_last=False), num_workers)


@contextlib.contextmanager
def worker_crash_as_user_error(loader: DataLoader) -> Iterator[None]:
    """Names the image that a data-loading process was reading when it died."""
    try:
        yield
    except RuntimeError as error:  # torch raises it from a signal handler, wherever this process is
        if "DataLoader worker" not in str(error):
            raise
        files = ", ".join(str(path) for path in loader.dataset.being_read(str(error))) or "no image"
        raise UserError(f"a data-loading process died while it was reading {files}: {error} Look at that file; if it "
                        "is sound, the memory may be short (lower --num_workers)") from error


def _loader(dataset: CocoDetection, batches: Sampler, num_workers: int, pad_multiple: int = 1) -> DataLoader:
    dataset.watch_workers(num_workers)
    # Its own generator: starting workers must not move the training's random state.
    return DataLoader(dataset, batch_sampler=batches, collate_fn=partial(collate, multiple=pad_multiple),
                      num_workers=num_workers, pin_memory=torch.cuda.is_available(), generator=torch.Generator(),
                      worker_init_fn=ignore_in_worker)
