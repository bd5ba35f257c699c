"""What is kept of a large set: the same as what is read, and never trusted when something changed."""
import json
import logging
import multiprocessing

import pytest
import torch
import torch.distributed as dist

from datasets import cache
from datasets.data import DetectionData
from datasets.formats.coco import CocoSource
from tests.datasets.formats.layouts import EVERY, digests, opened, stem, write_coco, write_layout, write_yolo
from util.distributed import init_distributed
from util.errors import UserError
from util.options import DataOptions


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(cache, "LEAST_BYTES", 0)


def cached(folder):
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", EVERY)
def test_what_is_mapped_is_what_was_read(tmp_path, name, everything_is_large, monkeypatch, caplog):
    wanted = digests(opened(name, tmp_path / "a"))
    path, places = write_layout(name, tmp_path / "b")
    data = DetectionData(path, DataOptions(**places), tmp_path / "cache")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert digests(data) == wanted
    assert len(cached(tmp_path / "cache")) == 2
    told, messages = caplog.text.count("root of the others"), len(caplog.records)
    monkeypatch.setattr(type(data.source("train")), "read", None)  # it is not read again
    with caplog.at_level(logging.INFO):
        assert digests(DetectionData(path, DataOptions(**places), tmp_path / "cache")) == wanted
    assert caplog.text.count("root of the others") == 2 * told and len(caplog.records) == 2 * messages


def test_small_sets_are_not_cached(tmp_path):
    opened("coco", tmp_path / "set", tmp_path / "cache").split("train")
    assert not (tmp_path / "cache").exists()


def test_a_changed_set_is_read_again(tmp_path, everything_is_large):
    def labels():
        return DetectionData(tmp_path / "set", cache_folder=tmp_path / "cache").split("train").table.labels.tolist()

    write_yolo(tmp_path / "set")
    before, (file,) = labels(), cached(tmp_path / "cache")
    (tmp_path / f"set/labels/train/{stem('train', 0)}.txt").write_text("2 0.5 0.5 0.25 0.25\n" * 3)
    assert labels() == [3, 3, 3, *before[1:]] and cached(tmp_path / "cache") == [file]
    (tmp_path / "set/labels/train/extra.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    (tmp_path / "set/images/train/extra.png").write_bytes((tmp_path / "set/images/train/train_0.png").read_bytes())
    assert labels() == [1, 3, 3, 3, *before[1:]]


def test_a_damaged_cache_is_replaced(tmp_path, everything_is_large, caplog):
    wanted = digests(opened("coco", tmp_path / "set", tmp_path / "cache"))
    for file in cached(tmp_path / "cache"):
        sound = file.read_bytes()
        for damage in (b"", sound[:100], sound[:-1], sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:],
                       sound.replace(b'"F64"', b'"I64"'), b"\xff" * 50):
            file.write_bytes(damage)
            caplog.clear()
            assert digests(DetectionData(tmp_path / "set", cache_folder=tmp_path / "cache")) == wanted
            assert "is damaged" in caplog.text and file.read_bytes() == sound


@pytest.mark.parametrize("old, new", [(b'\\"ant\\"', b'\\"art\\"'), (b"root of the", b"root of she")])
def test_names_and_what_the_log_says_are_part_of_the_checksum(tmp_path, everything_is_large, caplog, old, new):
    data = opened("roboflow", tmp_path / "set", tmp_path / "cache")
    wanted = data.split("train").table.names
    (file,) = cached(tmp_path / "cache")
    sound = file.read_bytes()
    assert sound.count(old) == 1
    file.write_bytes(sound.replace(old, new))
    assert DetectionData(tmp_path / "set", cache_folder=tmp_path / "cache").split("train").table.names == wanted
    assert "is damaged" in caplog.text and file.read_bytes() == sound


def test_a_table_outlives_the_file_that_takes_its_place(tmp_path, everything_is_large):
    old = opened("coco", tmp_path / "set", tmp_path / "cache").split("train").table
    before = old.boxes.tolist()
    content = json.loads((tmp_path / "set/annotations/instances_train2017.json").read_text())
    content["annotations"] = []
    (tmp_path / "set/annotations/instances_train2017.json").write_text(json.dumps(content))
    new = DetectionData(tmp_path / "set", cache_folder=tmp_path / "cache").split("train").table
    assert len(new.boxes) == 0 and old.boxes.tolist() == before and len(cached(tmp_path / "cache")) == 1


def test_a_cache_of_another_version_is_replaced(tmp_path, everything_is_large, monkeypatch):
    opened("coco", tmp_path / "set", tmp_path / "cache").split("train")
    before = cached(tmp_path / "cache")[0].read_bytes()
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    DetectionData(tmp_path / "set", cache_folder=tmp_path / "cache").split("train")
    assert cached(tmp_path / "cache")[0].read_bytes() != before


def test_a_cache_that_cannot_be_written_is_told(tmp_path, everything_is_large, caplog):
    (tmp_path / "cache").write_text("a file")
    assert len(opened("coco", tmp_path / "set", tmp_path / "cache").split("train").table) == 6
    assert "Every process reads the data set" in caplog.text


def test_an_error_is_not_cached(tmp_path, everything_is_large):
    write_yolo(tmp_path / "set")
    label = tmp_path / f"set/labels/train/{stem('train', 0)}.txt"
    label.write_text("9 0.5 0.5 0.25 0.25\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"train_0.txt, line 1: the class 9, but .*data.yaml has 3, from 0"):
            DetectionData(tmp_path / "set", cache_folder=tmp_path / "cache").split("train")
    assert not cached(tmp_path / "cache")


# several processes

def in_two_processes(function, *arguments):
    """function(rank, *arguments) in two processes of one group; what it returns has been written as JSON."""
    def process(mine):
        torch.set_num_threads(1)  # the parent's threads do not survive the fork
        init_distributed("cpu", 2, mine, mine, f"file://{arguments[0]}/meet")
        (arguments[0] / f"{mine}.json").write_text(json.dumps(function(*arguments)))
        dist.barrier()
        dist.destroy_process_group()

    context = multiprocessing.get_context("fork")  # does not import torch again
    processes = [context.Process(target=process, args=(rank,), daemon=True) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(timeout=120)
        one.kill()
    assert [one.exitcode for one in processes] == [0, 0]
    return [json.loads((arguments[0] / f"{rank}.json").read_text()) for rank in range(2)]


def read_and_count(folder, root):
    """How often the process reads the train set, and what it knows then; or the error."""
    calls, read = [], CocoSource.read
    CocoSource.read = lambda source: calls.append(source) or read(source)
    try:
        table = DetectionData(root, cache_folder=folder / "cache").split("train").table
        return [len(calls), table.boxes.tolist(), list(table.file_names)]
    except UserError as error:
        return [len(calls), str(error)]


def test_one_process_reads_and_the_other_maps(tmp_path, everything_is_large):
    wanted = opened("coco", tmp_path / "set").split("train").table
    expected = [wanted.boxes.tolist(), list(wanted.file_names)]
    assert in_two_processes(read_and_count, tmp_path, tmp_path / "set") == [[1, *expected], [0, *expected]]
    (tmp_path / "meet").unlink(missing_ok=True)
    assert in_two_processes(read_and_count, tmp_path, tmp_path / "set") == [[0, *expected]] * 2


def test_every_process_raises_what_one_finds(tmp_path, everything_is_large):
    (write_coco(tmp_path / "set") / "annotations/instances_train2017.json").write_text("{")
    (count, error), (other_count, other_error) = in_two_processes(read_and_count, tmp_path, tmp_path / "set")
    assert (count, other_count) == (1, 0) and error == other_error and "not valid JSON" in error


def test_without_a_cache_every_process_reads(tmp_path, everything_is_large):
    write_coco(tmp_path / "set")
    (tmp_path / "cache").write_text("a file")
    found = in_two_processes(read_and_count, tmp_path, tmp_path / "set")
    assert [row[0] for row in found] == [1, 1] and found[0] == found[1]
