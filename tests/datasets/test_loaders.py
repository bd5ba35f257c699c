"""The order of training batches, and each process's share of an evaluation."""
import json
import multiprocessing
import os
import pickle
import pkgutil
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import loaders
from datasets.coco import CocoDetection
from datasets.loaders import FirstBatches, TrainBatches, eval_loader, train_loader, worker_crash_as_user_error
from datasets.synthetic import generate
from datasets.transforms import train_transforms, val_transforms
from tests.datasets import coco_sets
from util.errors import UserError
from util.options import DataOptions

SMALL = DataOptions(data_aug_scales=[32, 40], data_aug_max_size=64, data_aug_scales2_resize=[32, 40],
                    data_aug_scales2_crop=[24, 32])


def test_sides_of_training_batches_are_multiples(single_root):
    dataset = CocoDetection(single_root, "train", train_transforms(SMALL))
    for samples, targets in train_loader(dataset, 1, 0, seed=0, epoch_batches=5, pad_multiple=24):
        assert not any(side % 24 for side in samples.tensors.shape[2:])
        assert (~samples.mask).sum() == targets[0]["size"].prod()


class Numbers:
    """A set of which only the length counts."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length


@pytest.fixture
def as_process(monkeypatch):
    """Makes the loaders that are built next those of one process of several."""
    def as_process(rank, world_size):
        monkeypatch.setattr(loaders, "rank", lambda: rank)
        monkeypatch.setattr(loaders, "world_size", lambda: world_size)
    return as_process


@pytest.fixture(scope="module")
def single_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("single") / "set"
    generate(root, train=1, val=1, seed=2, size=48)
    return root


def opened(root, split):
    return CocoDetection(root, split, (train_transforms if split == "train" else val_transforms)(SMALL))


def order(length=23, batch_size=4, seed=0, epoch=0, start=0, epoch_batches=None):
    """The batches of an epoch, as indices of images."""
    return [[one.image for one in batch] for batch in samples(length, batch_size, seed, epoch, start, epoch_batches)]


def samples(length=23, batch_size=4, seed=0, epoch=0, start=0, epoch_batches=None, epochs=1):
    batches = TrainBatches(Numbers(length), batch_size, seed, epoch_batches, epochs)
    batches.set_epoch(epoch, start)
    assert len(batches) == len(list(batches))
    return list(batches)


# training

def test_the_order_follows_from_seed_and_epoch_alone():
    first = order(seed=3, epoch=2)
    torch.manual_seed(99)
    torch.rand(5)
    assert order(seed=3, epoch=2) == first
    assert order(seed=3, epoch=1) != first and order(seed=4, epoch=2) != first


def test_an_order_does_not_depend_on_the_epochs_before():
    batches = TrainBatches(Numbers(23), 4, seed=0)
    for epoch in (0, 1, 5):
        batches.set_epoch(epoch)
        list(batches)
    assert list(batches) == samples(epoch=5)


def test_a_sample_has_another_number_in_every_pass():
    numbers = [one[:2] for epoch in range(3) for batch in samples(8, 4, epoch=epoch) for one in batch]
    assert sorted(numbers) == [(image, repetition) for image in range(8) for repetition in range(3)]


@pytest.mark.parametrize("length, size, epoch_batches", [(23, 4, 3), (23, 4, 7), (1, 4, 5), (3, 2, 10)])
def test_epochs_of_a_fixed_length_go_through_the_same_passes(length, size, epoch_batches):
    passes = [batch for epoch in range(40) for batch in samples(length, size, epoch=epoch)]
    epochs = [batch for epoch in range(3) for batch in samples(length, size, epoch=epoch, epoch_batches=epoch_batches)]
    def order(batches):
        return [[one[:2] for one in batch] for batch in batches]

    assert order(epochs) == order(passes[:3 * epoch_batches])


@pytest.mark.parametrize("start", range(8))
def test_a_start_within_an_epoch_of_a_fixed_length(start):
    assert samples(epoch=2, start=start, epoch_batches=7) == samples(epoch=2, epoch_batches=7)[start:]


def test_batches_are_full_shuffled_and_without_repetition():
    batches = order(23, 4)
    seen = [i for batch in batches for i in batch]
    assert [len(batch) for batch in batches] == [4] * 5
    assert len(set(seen)) == 20 and seen != sorted(seen)
    assert {i for epoch in range(6) for batch in order(23, 4, epoch=epoch) for i in batch} == set(range(23))


@pytest.mark.parametrize("start", range(6))
def test_a_start_in_mid_epoch_gives_the_remaining_batches(start):
    assert order(epoch=1, start=start) == order(epoch=1)[start:]


def test_the_next_epoch_starts_at_its_beginning():
    batches = TrainBatches(Numbers(23), 4, seed=0)
    batches.set_epoch(0, first_batch=3)
    assert len(list(batches)) == len(batches) == 2
    batches.set_epoch(1)
    assert list(batches) == samples(epoch=1)


@pytest.mark.parametrize("length, size, sizes", [
    (8, 4, [4, 4]), (9, 4, [4, 4]), (4, 4, [4]), (3, 4, [3]), (1, 4, [1]), (1, 1, [1]), (7, 1, [1] * 7)])
def test_the_last_batch_is_dropped_only_where_a_full_one_exists(length, size, sizes):
    assert [len(batch) for batch in order(length, size)] == sizes


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_an_epoch_in_equal_parts(as_process, world_size):
    shares = []
    for rank in range(world_size):
        as_process(rank, world_size)
        shares.append(order(24, 2, epoch=1))
    assert {len(share) for share in shares} == {24 // world_size // 2}
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(24))


def test_every_process_has_as_many_batches_where_the_set_does_not_divide(as_process):
    counts = set()
    for rank in range(3):
        as_process(rank, 3)
        counts.add(tuple(len(batch) for batch in order(10, 2)))
    assert counts == {(2, 2)}


def test_a_loader_started_in_mid_epoch_gives_the_same_samples(coco_root):
    loader = train_loader(opened(coco_root, "train"), 2, 0, seed=1)
    loader.batch_sampler.set_epoch(2)
    whole = list(loader)
    resumed = train_loader(opened(coco_root, "train"), 2, 0, seed=1)
    resumed.batch_sampler.set_epoch(2, first_batch=3)
    assert len(resumed) == 1 and len(whole) == 4
    ((batch, targets),) = resumed
    assert torch.equal(batch.tensors, whole[3][0].tensors) and torch.equal(batch.mask, whole[3][0].mask)
    assert [t["image_id"] for t in targets] == [t["image_id"] for t in whole[3][1]]


# progress

def progress(**how):
    return [one.progress for batch in samples(**how) for one in batch]


@pytest.mark.parametrize("epoch_batches, all_batches", [(None, 15), (2, 6), (7, 21), (40, 120)])
def test_samples_know_how_far_the_training_is(as_process, epoch_batches, all_batches):
    """23 images, 4 in a batch: 5 batches in a pass, fewer or many more in an epoch; 3 epochs."""
    found = []
    for epoch in range(3):
        found += progress(epoch=epoch, epoch_batches=epoch_batches, epochs=3)
        rest = progress(epoch=epoch, start=1, epoch_batches=epoch_batches, epochs=3)
        assert rest == found[len(found) - len(rest):] and len(rest) % 4 == 0
    assert found == [i / all_batches for i in range(all_batches) for _ in range(4)]
    for rank in range(2):
        as_process(rank, 2)  # half as many images each
        shares = [p for epoch in range(3) for p in progress(batch_size=2, epoch=epoch, epoch_batches=epoch_batches,
                                                            epochs=3)]
        assert shares == [i / (all_batches if epoch_batches else 18) for i in range(
            all_batches if epoch_batches else 18) for _ in range(2)]


# evaluation

@pytest.mark.parametrize("world_size", [1, 2, 3, 9])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_image_is_evaluated_exactly_once(coco_root, as_process, world_size, batch_size):
    dataset, shares = opened(coco_root, "val"), []
    for rank in range(world_size):
        as_process(rank, world_size)
        loader = eval_loader(dataset, batch_size, 0)
        batches = [[t["image_id"] for t in targets] for _, targets in loader]
        assert len(loader) == len(batches) and all(len(batch) <= batch_size for batch in batches)
        shares.append([i for batch in batches for i in batch])
    assert sorted(i for share in shares for i in share) == list(range(1, 9))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_workers_evaluate_in_the_same_order(coco_root):
    ids = [[t["image_id"] for _, targets in eval_loader(opened(coco_root, "val"), 3, workers) for t in targets]
           for workers in (0, 2)]
    assert ids[0] == ids[1] == list(range(1, 9))


# a set of one image

def test_one_image_is_enough(single_root):
    loader = train_loader(opened(single_root, "train"), 4, 0, seed=0)
    ((batch, targets),) = loader
    assert len(batch.tensors) == len(targets) == 1
    ((_, targets),) = eval_loader(opened(single_root, "val"), 4, 0)
    assert targets[0]["image_id"] == 1


def test_two_processes_both_train_on_the_one_image(single_root, as_process):
    for rank in range(2):
        as_process(rank, 2)
        ((_, targets),) = train_loader(opened(single_root, "train"), 4, 0, seed=0)
        assert [t["image_id"] for t in targets] == [1]


# data-loading processes that die

def failing(loader, error, processes=()):
    """What the user of a loader sees where this error arises in it while these processes have its images."""
    def fail(images):
        raise error

    here = eval_loader(loader.dataset, 1, 0)
    here.collate_fn = fail
    loader.dataset.watch_workers(loader.num_workers)
    try:
        with worker_crash_as_user_error(loader):
            for worker, process in enumerate(processes):
                loader.dataset.reading[worker] = torch.tensor([process, worker])
            next(iter(here))
    except Exception as seen:
        return seen


OTHER_ERRORS = [RuntimeError("CUDA out of memory"), OSError(28, "No space left on device"),
                RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer")]


@pytest.mark.parametrize("error", OTHER_ERRORS, ids=str)
def test_an_error_in_what_is_done_with_the_batches_stays_itself(coco_root, error):
    """Although the loader ends its healthy process when the loop is left."""
    loader = eval_loader(opened(coco_root, "val"), 1, 1)
    with pytest.raises(type(error)) as seen:
        with worker_crash_as_user_error(loader):
            for _ in loader:
                raise error
    assert seen.value is error


@pytest.mark.parametrize("error", [UserError("cannot read x.jpg"), ValueError("a bug"), RuntimeError("a bug")],
                         ids=lambda error: type(error).__name__)
def test_an_error_in_a_living_process_stays_itself(coco_root, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("datasets.coco.read_image", fail)
    loader = eval_loader(opened(coco_root, "val"), 1, 1)
    with pytest.raises(type(error), match=f"Caught {type(error).__name__} in DataLoader worker process 0"):
        with worker_crash_as_user_error(loader):
            list(loader)


BROKEN = [ConnectionResetError(104, "reset by peer"), EOFError(), RuntimeError("received 0 items of ancdata"),
          pickle.UnpicklingError("pickle data was truncated")]


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_a_broken_connection_to_a_dead_process_names_its_file(coco_root, error):
    loader = eval_loader(opened(coco_root, "val"), 1, 2)
    with subprocess.Popen(["sleep", "60"]) as alive, subprocess.Popen(["true"]) as dead:
        seen = failing(loader, error, [alive.pid, dead.pid])
        alive.kill()
    name = loader.dataset.coco.imgs[loader.dataset.ids[1]]["file_name"]
    assert isinstance(seen, UserError) and seen.__cause__ is error
    assert f"died while it was reading {loader.dataset.folder / name}: DataLoader worker (pid {dead.pid})" in str(seen)


@pytest.mark.parametrize("step", ["re.match", "_is_from_loader", "time.sleep"])
def test_a_process_is_named_whenever_the_signal_of_its_end_arrives(coco_root, monkeypatch, step):
    """The signal handler of PyTorch raises wherever this process is, also while it asks what broke the connection."""
    loader = eval_loader(opened(coco_root, "val"), 1, 1)
    signals = iter([RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed.")])
    original = pkgutil.resolve_name(f"datasets.loaders.{step}")

    def interrupted(*arguments):
        for error in signals:
            raise error
        return original(*arguments)

    monkeypatch.setattr(f"datasets.loaders.{step}", interrupted)
    with subprocess.Popen(["sleep", "60"]) as alive:
        seen = failing(loader, ConnectionResetError(104, "reset by peer"), [alive.pid])
        alive.kill()
    assert isinstance(seen, UserError) and "DataLoader worker (pid 77) is killed by signal: Killed" in str(seen)


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_the_same_error_is_another_s_while_all_processes_live(coco_root, error):
    loader = eval_loader(opened(coco_root, "val"), 1, 1)
    with subprocess.Popen(["sleep", "60"]) as alive:
        assert failing(loader, error, [alive.pid]) is error
        alive.kill()
    assert failing(loader, error) is error  # nor do processes of an earlier pass count


def test_an_error_of_another_kind_is_not_a_dead_process_s(coco_root):
    with subprocess.Popen(["true"]) as dead:
        error = KeyError("a bug")
        assert failing(eval_loader(opened(coco_root, "val"), 1, 1), error, [dead.pid]) is error


def test_the_first_batches_of_a_loader(coco_root):
    loader = eval_loader(opened(coco_root, "val"), 2, 0)
    first = FirstBatches(loader, 3)
    assert len(first) == 3
    assert [[t["image_id"] for t in targets] for _, targets in first] == [[1, 2], [3, 4], [5, 6]]
    assert list(FirstBatches(loader, 0)) == []


def test_two_processes_share_the_batches_of_one(as_process):
    """A training that goes on with another number of processes reads the same images in the same steps."""
    whole = [set(batch) for batch in TrainBatches(Numbers(12), 4, seed=3)]
    shares = []
    for rank in range(2):
        as_process(rank, 2)
        shares.append([set(batch) for batch in TrainBatches(Numbers(12), 2, seed=3)])
    assert [a | b for a, b in zip(*shares)] == whole


# memory

def private_kb(process="self"):
    lines = Path("/proc", str(process), "smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_over_2000_steps_is_flat(tmp_path):
    """Of the training's process and of two that load: targets that are kept, or copied because a process touches them,
    would add more than 5 KB a step. (What the first thousand take is taken once.)"""
    images, boxes = 2400, 200
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "picture.jpg")
    for number in range(1, images + 1):
        os.link(tmp_path / "picture.jpg", tmp_path / "train2017" / f"{number}.jpg")
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(1, images + 1)],
        "annotations": [{"id": i + 1, "image_id": i % images + 1, "category_id": 1, "bbox": [1, 2, 10, 10], "area": 100,
                         "iscrowd": 0} for i in range(images * boxes)],
        "categories": [{"id": 1, "name": "thing"}]}), encoding="utf-8")
    loader = train_loader(opened(tmp_path, "train"), 1, 2, seed=0, epoch_batches=2000)
    steps, kept = [], []
    for step, _ in enumerate(loader):
        if step >= 1000 and step % 50 == 0:
            workers = [process.pid for process in multiprocessing.active_children()]
            assert len(workers) == 2
            steps.append(step)
            kept.append([private_kb(), *map(private_kb, workers)])
    growth = np.polyfit(steps, kept, 1)[0]  # KB a step, of each process
    assert (growth < 2).all(), growth


def test_epoch_by_epoch_the_same_samples_whatever_the_workers(coco_root):
    def epochs(workers):
        loader = train_loader(coco_sets.opened(coco_root, seed=3), 2, workers, seed=3)
        batches = []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            batches += list(loader)
        return batches

    alone = epochs(0)
    assert len(alone) == 8
    for workers in (1, 2):
        for (batch, targets), (wanted, wanted_targets) in zip(epochs(workers), alone, strict=True):
            assert torch.equal(batch.mask, wanted.mask)
            for image, target, *other in zip(batch.tensors, targets, wanted.tensors, wanted_targets, strict=True):
                coco_sets.assert_same((image, target), other)


@pytest.mark.parametrize("workers", [0, 2])
def test_sampling_leaves_the_global_random_states_alone(coco_root, workers):
    loader = train_loader(coco_sets.opened(coco_root), 2, workers, seed=0)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert len(list(loader)) == 4
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
