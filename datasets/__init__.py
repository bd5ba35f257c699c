"""Data sets and their loaders."""
from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, Sampler

from datasets.coco import CocoDetection, collate
from util.distributed import rank, world_size
from util.signals import ignore_in_worker


class TrainBatches(Sampler):
    """Shuffled batches of one process. The order follows from seed and epoch alone, and can start in mid-epoch."""

    def __init__(self, dataset: CocoDetection, batch_size: int, seed: int):
        self.dataset = dataset
        self.sampler = DistributedSampler(dataset, num_replicas=world_size(), rank=rank(), shuffle=True, seed=seed)
        self.batches = BatchSampler(self.sampler, batch_size, drop_last=len(self.sampler) >= batch_size)
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Chooses the epoch, and the batch of it to start with."""
        self.sampler.set_epoch(epoch)
        self.dataset.set_epoch(epoch)
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        return islice(iter(self.batches), self.start, None)

    def __len__(self) -> int:
        return len(self.batches) - self.start


def train_loader(dataset: CocoDetection, batch_size: int, num_workers: int, seed: int) -> DataLoader:
    return _loader(dataset, TrainBatches(dataset, batch_size, seed), num_workers)


def eval_loader(dataset: CocoDetection, batch_size: int, num_workers: int) -> DataLoader:
    """Every process reads its own share of the images, none twice."""
    share = range(rank(), len(dataset), world_size())
    return _loader(dataset, BatchSampler(share, batch_size, drop_last=False), num_workers)


def _loader(dataset: CocoDetection, batches: Sampler, num_workers: int) -> DataLoader:
    # Its own generator: starting workers must not move the training's random state.
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=num_workers,
                      pin_memory=torch.cuda.is_available(), generator=torch.Generator(),
                      worker_init_fn=ignore_in_worker)
