import gc
import os
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from inference.predictor import Predictor, default_device, open_backend
from inference.sources import open_source
from models import build_model
from tests.inference.scenes import RectangleFinder, moving, scene, write_video
from util.config import Config
from util.errors import UserError

PICTURE = scene((200, 120), red=(20, 30, 60, 90), blue=(100, 10, 150, 50))


@pytest.fixture
def finder():
    return RectangleFinder()


@pytest.fixture
def predictor(finder):
    return Predictor(finder)


def test_one_image_gives_one_result(predictor, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    for source in (PICTURE, np.asarray(PICTURE), tmp_path / "a.png", str(tmp_path / "a.png")):
        found = predictor(source)
        assert sorted(found.names) == ["Blue thing", "red"] and found.size == (200, 120)
        assert sorted(found.boxes.tolist()) == [[20, 30, 60, 90], [100, 10, 150, 50]]
        assert found.path == ("" if not isinstance(source, (str, os.PathLike)) else str(tmp_path / "a.png"))
    assert predictor.class_names == {1: "red", 2: "Blue thing"} and predictor.card.thresholds == {1: 0.95}


def test_boxes_are_in_pixels_of_the_image_whatever_the_detector_reads():
    found = Predictor(RectangleFinder(shorter=240))(PICTURE)
    assert sorted(found.boxes.round().tolist()) == [[20, 30, 60, 90], [100, 10, 150, 50]]


def test_several_images_give_a_list_and_a_stream_a_generator(predictor, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    scene(red=(1, 2, 30, 40)).save(tmp_path / "b.png")
    for source in (tmp_path, [tmp_path / "a.png", tmp_path / "b.png"], f"{tmp_path}/*.png"):
        first, second = predictor(source)
        assert (len(first), len(second)) == (2, 1) and second.path.endswith("b.png")
        assert first.image is None and first.draw().size == (480, 288)  # from the file
        streamed = predictor(source, stream=True)
        assert iter(streamed) is streamed and np.array_equal(next(streamed).image, PICTURE)
    assert predictor([PICTURE])[0].image is not None


def test_limits(predictor):
    assert len(predictor(PICTURE, 0.9)) == 2 and len(predictor(PICTURE, 0.91)) == 0
    assert predictor(PICTURE, {"red": 1}).names == ["Blue thing"]
    assert predictor(PICTURE, "best").names == ["Blue thing"]  # red has 0.95, the other 0.3


@pytest.mark.parametrize("batch_size, wanted", [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_images_come_in_batches_in_their_order(predictor, finder, batch_size, wanted):
    found = predictor([scene(red=(i, 0, i + 5, 5)) for i in range(5)], batch_size=batch_size)
    assert [result.boxes[0, 0].item() for result in found] == [0, 1, 2, 3, 4] and finder.batches == wanted


def test_a_broken_image_is_left_out_of_a_list(predictor, tmp_path, caplog):
    (tmp_path / "a.png").write_text("no picture")
    PICTURE.save(tmp_path / "b.png")
    assert [found.path for found in predictor(tmp_path, batch_size=2)] == [str(tmp_path / "b.png")]
    assert "a.png" in caplog.text
    with pytest.raises(UserError, match="a.png"):
        predictor(tmp_path / "a.png")


def test_frames_of_a_video(predictor, tmp_path):
    path = write_video(tmp_path / "a.mp4", moving(6), times=[0, 10, 20, 500, 600, 700])
    found = predictor(path, batch_size=4)
    assert [result.frame for result in found] == list(range(6)) and found[3].time == pytest.approx(0.5)
    assert [round(result.boxes[result.labels == 1][0, 0].item()) for result in found] == [0, 4, 8, 12, 16, 20]
    assert found[0].image is None and next(predictor(path, stream=True)).image is not None


def test_tiles_find_what_lies_at_a_seam_once():
    picture = scene((500, 300), red=(215, 100, 285, 160), blue=(2, 5, 480, 20))
    small_only = RectangleFinder()
    found = Predictor(small_only)(picture, tiles=200, batch_size=3)
    assert sorted(found.boxes.tolist()) == [[2, 5, 480, 20], [215, 100, 285, 160]]
    assert sum(small_only.batches) == 1 + 3 * 2 and max(small_only.batches) == 3
    assert len(Predictor(small_only)(picture, tiles=(300, 500))) == 2  # a single one


def test_a_picture_found_in_parts_only(predictor):
    """Six pixels of 1500 are lost when the whole image is made small; tiles see it."""
    blind = RectangleFinder(shorter=100)
    picture = scene((1500, 1500), red=(750, 750, 756, 756))
    assert len(Predictor(blind)(picture)) == 0
    (box,) = Predictor(blind)(picture, tiles=150).boxes.tolist()
    assert box == pytest.approx([750, 750, 756, 756], abs=2)


@pytest.mark.parametrize("arguments, message", [
    ({"score": 2}, "score 2"), ({"score": {"green": 1}}, "no class 'green'"), ({"batch_size": 0}, "batch_size 0"),
    ({"batch_size": 1.0}, "batch_size 1.0"), ({"tiles": 3}, "tiles 3"), ({"tiles": 64, "overlap": 1}, "overlap 1")])
def test_arguments_out_of_range_are_told_before_anything_runs(predictor, finder, arguments, message):
    for stream in (False, True):
        with pytest.raises(UserError, match=message):
            predictor(PICTURE, stream=stream, **arguments)
    assert finder.batches == []


def test_what_never_ends_must_be_a_stream(predictor, monkeypatch):
    with pytest.raises(UserError, match="stream=True"):
        predictor(0)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(UserError, match="no camera 97"):
        next(predictor(97, stream=True))


def test_a_detector_that_contradicts_its_card_is_told(finder):
    finder.card.config["num_classes"] = 2
    with pytest.raises(UserError, match="category id 2.*num_classes=2"):
        Predictor(finder)(PICTURE)


def test_tiles_are_cut_when_their_turn_comes(finder, monkeypatch):
    cut, detect = [], finder.detect
    monkeypatch.setattr(Image.Image, "crop", lambda image, box: cut.append(box) or image.copy().resize((50, 50)))
    monkeypatch.setattr(finder, "detect", lambda images, sizes: cut.append(len(images)) or detect(images, sizes))
    Predictor(finder)(scene((200, 100)), tiles=50, overlap=0, batch_size=4)
    assert [entry for entry in cut if isinstance(entry, int)] == [4, 4, 1]
    assert cut[:5] == [(0, 0, 50, 50), (50, 0, 100, 50), (100, 0, 150, 50), 4, (150, 0, 200, 50)]


def test_an_image_of_too_many_tiles_is_named(predictor, tmp_path):
    Image.new("L", (700, 700)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="large.png: an image of 700x700 px has 1,936 tiles"):
        predictor([PICTURE, tmp_path / "large.png"], tiles=16, overlap=0)


def test_boxes_that_are_no_numbers_are_none(finder, monkeypatch):
    boxes = torch.tensor([[1.0, 2, 3, 4], [1, float("nan"), 3, 4], [1, 2, float("inf"), 4]])
    found = {"boxes": boxes, "scores": torch.full((3,), 0.9), "labels": torch.ones(3, dtype=torch.int64)}
    monkeypatch.setattr(finder, "detect", lambda images, sizes: [found] * len(images))
    assert Predictor(finder)(PICTURE).boxes.tolist() == [[1, 2, 3, 4]]


def test_a_source_can_be_given_opened(predictor, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    source = open_source([tmp_path / "a.png", PICTURE])
    source.skipped.report = lambda message: None
    assert len(predictor(source)) == 1 and source.skipped.count == 1


def test_weights_that_need_a_config_say_so(tiny_config, tmp_path):
    torch.save({"model": build_model(tiny_config)[0].state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="weights.pth carries no config.*-c CONFIG"):
        Predictor(tmp_path / "weights.pth")
    Config(tiny_config).dump(tmp_path / "config.py")
    assert len(Predictor(tmp_path / "weights.pth", tmp_path / "config.py")(PICTURE, 0)) == 20


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_an_exported_file_is_there_and_follows_no_config(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(UserError, match=f"no file .*a{suffix}"):
        Predictor(path)
    path.touch()
    for arguments in ({"config": "a.py"}, {"options": ["num_select=5"]}, {"amp": True}, {"compile": True}):
        with pytest.raises(UserError, match="exported file"):
            Predictor(path, **arguments)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames_of_a_stream(tmp_path):
    """Of 1,500 frames of 320 x 240 px, whose pictures are 330 MiB."""
    path = write_video(tmp_path / "a.mp4", [picture.resize((320, 240)) for picture in moving(16)] * 94)
    sizes, count = [], 0
    for found in Predictor(RectangleFinder())(path, stream=True):
        count += 1
        assert found.image.size == (320, 240)
        if count in (500, 1500):
            gc.collect()
            sizes.append(memory())
    assert count == 1504 and sizes[1] - sizes[0] < 15


def memory():
    """Of this process, MiB."""
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def test_a_grey_image_is_rgb(predictor):
    assert len(predictor(np.zeros((40, 50), np.uint8))) == 0
    assert len(predictor(Image.new("L", (40, 50)))) == 0


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("onnx_on_gpu", [True, False])
def test_the_default_device_is_one_that_the_detector_runs_on(monkeypatch, gpu, onnx_on_gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    runtime = SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider"] * onnx_on_gpu + ["CPU"])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr("inference.backends.onnx.find_spec", lambda name: runtime)
    found = {name: default_device(name) for name in ("bccd_lite_dino", "a.pth", "a.XML", "a.pt2", "a.onnx")}
    on_gpu = {"bccd_lite_dino": gpu, "a.pth": gpu, "a.XML": False, "a.pt2": False, "a.onnx": gpu and onnx_on_gpu}
    assert found == {name: "cuda" if runs else "cpu" for name, runs in on_gpu.items()}
    monkeypatch.setattr("inference.backends.onnx.find_spec", lambda name: None)
    assert default_device("a.onnx") == "cpu"


@pytest.mark.parametrize("name, package", [("a.xml", "openvino"), ("a.pt2", "torch")])
def test_a_device_that_was_asked_for_is_used_or_refused(tmp_path, monkeypatch, name, package):
    pytest.importorskip(package)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="on a CPU|for a CPU"):
        open_backend(tmp_path / name, device="cuda")


BLOCKED = """
import os

import inference.sources
from inference.predictor import Predictor
from tests.inference.scenes import RectangleFinder

def camera(source, skipped):
    print("blocked", flush=True)
    os.read(os.pipe()[0], 1)
    yield

inference.sources.read_video = camera
next(Predictor(RectangleFinder())(0, stream=True))
"""


def test_ctrl_c_ends_a_program_that_waits_for_a_camera():
    """Neither the reader of results nor the thread that waits for pictures keeps it alive."""
    with subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            assert process.stdout.readline() == "blocked\n", process.stderr.read()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode != 0 and errors.rstrip().endswith("KeyboardInterrupt")
