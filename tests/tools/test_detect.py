import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from models import build_model
from tests.inference.scenes import moving, noise_video, write_sound, write_video
from tools.detect import main, parse_args
from util.config import Config
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_signals():
    """The tool handles Ctrl-C from its first result on."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_default_device_follows_the_detector(tmp_path, monkeypatch):
    asked = []

    def predictor(weights, *rest, device, **more):
        asked.append(device)
        raise UserError("enough")

    monkeypatch.setattr("tools.detect.Predictor", predictor)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    (tmp_path / "a.png").touch()
    for flags in (["a.pth"], ["a.xml"], ["a.xml", "--device", "cuda"], ["a.pth", "--device", "cpu"]):
        with pytest.raises(UserError, match="enough"):
            main(parse_args([str(tmp_path / "a.png"), "--weights", *flags]))
    assert asked == ["cuda", "cpu", "cuda", "cpu"]


def detect(*arguments):
    return main(parse_args([*map(str, arguments), "--device", "cpu"]))


@pytest.fixture
def model(tiny_config, tmp_path):
    """The flags for a model with random weights, whose scores are all low."""
    Config(tiny_config).dump(tmp_path / "config.py")
    torch.save({"model": build_model(tiny_config)[0].state_dict(), "class_names": {i: f"thing {i}" for i in range(7)}},
               tmp_path / "weights.pth")
    return ["-c", tmp_path / "config.py", "--resume", tmp_path / "weights.pth", "--output_dir", tmp_path / "out"]


def frames(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.width, frame.height) for frame in container.decode(video=0)]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def images(tmp_path):
    """Two pictures and a file that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (120, 80), "green").save(folder / "green.jpg")
    Image.new("L", (500, 600), 90).save(folder / "grey.bmp")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_is_drawn_and_listed(model, images, tmp_path, capsys):
    assert detect(images, *model, "--score", 0) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"green.jpg", "grey.bmp.png", "detections.json"}
    assert Image.open(tmp_path / "out/grey.bmp.png").size == (500, 600)
    green, grey = json.loads((tmp_path / "out/detections.json").read_text())
    assert (green["file_name"], green["width"], green["height"]) == ("green.jpg", 120, 80)
    assert len(green["detections"]) == len(grey["detections"]) == 20
    scores = [row["score"] for row in green["detections"]]
    assert scores == sorted(scores, reverse=True)
    best = green["detections"][0]
    assert best["class"] == f"thing {best['category_id']}" and len(best["bbox"]) == 4
    assert "green.jpg: " in capsys.readouterr().out


def test_the_score_is_a_limit(model, images, tmp_path, capsys):
    assert detect(images / "green.jpg", *model, "--score", 1) == 0
    (green,) = json.loads((tmp_path / "out/detections.json").read_text())
    assert green["detections"] == [] and "green.jpg: nothing" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(model, images, tmp_path, capsys):
    (images / "broken.jpg").write_bytes((images / "green.jpg").read_bytes()[:300])
    assert detect(images, *model) == 1
    assert [row["file_name"] for row in json.loads((tmp_path / "out/detections.json").read_text())] == [
        "green.jpg", "grey.bmp"]
    errors = capsys.readouterr().err
    assert "cannot read the image" in errors and f"skipped 1 that cannot be read: {images / 'broken.jpg'}" in errors


def test_a_picture_that_pillow_refuses_for_its_size_does_not_stop_the_others(model, images, tmp_path, capsys,
                                                                              monkeypatch):
    Image.new("1", (700, 700)).save(images / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700 * 700 // 2 - 1)  # twice as many are refused
    Image.new("RGB", (500, 400)).save(images / "zebra.png")
    assert detect(images, *model) == 1
    assert [row["file_name"] for row in json.loads((tmp_path / "out/detections.json").read_text())] == [
        "green.jpg", "grey.bmp", "zebra.png"]
    assert f"skipped 1 that cannot be read: {images / 'large.png'}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["images", "images/../images", "linked"])
@pytest.mark.parametrize("single", [False, True])
def test_the_originals_are_never_written_over(model, images, tmp_path, name, single):
    (tmp_path / "linked").symlink_to(images)
    before = {path: path.read_bytes() for path in images.iterdir()}
    given = images / "green.jpg" if single else images
    with pytest.raises(UserError, match="green.jpg would be written over the input .*green.jpg"):
        detect(given, *model[:4], "--output_dir", tmp_path / name)
    assert {path: path.read_bytes() for path in images.iterdir()} == before


def test_a_link_in_the_output_folder_does_not_lead_to_another_picture(model, images, tmp_path):
    """An output takes the place of the link, and leaves what it leads to."""
    (tmp_path / "other.jpg").write_bytes(b"of somebody")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/green.jpg").symlink_to(tmp_path / "other.jpg")
    (tmp_path / "out/grey.bmp.png").hardlink_to(tmp_path / "other.jpg")
    assert detect(images, *model) == 0
    assert (tmp_path / "other.jpg").read_bytes() == b"of somebody"
    for name in ("green.jpg", "grey.bmp.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == ("JPEG" if name == "green.jpg" else "PNG")


def test_boxes_are_those_of_the_evaluation(model, coco_root, tmp_path):
    """The same pictures through main.py."""
    import main as program

    content = torch.load(model[3], weights_only=True)
    torch.save({"model": content["model"]}, model[3])  # its names are not those of the set
    assert program.main(program.parse_args([
        *map(str, model[:4]), "--coco_path", str(coco_root), "--eval", "--save_results", "--device", "cpu",
        "--num_workers", "0", "--output_dir", str(tmp_path / "eval")])) == 0
    wanted = json.loads((tmp_path / "eval/results/val_detections.json").read_text())
    name = json.loads((coco_root / "annotations/instances_val2017.json").read_text())["images"][0]
    wanted = sorted((row for row in wanted if row["image_id"] == name["id"]), key=lambda row: -row["score"])
    assert detect(coco_root / "val2017" / name["file_name"], *model, "--score", 0) == 0
    (image,) = json.loads((tmp_path / "out/detections.json").read_text())
    found = [row for row in image["detections"] if row["category_id"] > 0]  # the set has no class 0
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-3)
    assert found[0]["bbox"] == pytest.approx(wanted[0]["bbox"], abs=0.1)


def test_a_video_is_drawn_and_each_frame_is_a_line(model, tmp_path, capsys):
    times = [0, 100, 150, 1000]
    video = write_video(tmp_path / "street.mp4", moving(4), times, sound=True)
    before = video.read_bytes()
    assert detect(video, *model, "--score", 0, "--batch_size", 3) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"street.mp4", "detections.jsonl"}
    rows = lines(tmp_path / "out/detections.jsonl")
    assert [(row["file_name"], row["frame"], row["time"]) for row in rows] == [
        ("street.mp4", i, time / 1000) for i, time in enumerate(times)]
    assert rows[0]["width"] == 96 and len(rows[0]["detections"]) == 20 and rows[0]["detections"][0]["bbox"]
    drawn = frames(tmp_path / "out/street.mp4")
    assert [row[0] for row in drawn] == pytest.approx([time / 1000 for time in times], abs=1e-3)
    assert drawn[0][1:] == (480, 320) and video.read_bytes() == before
    assert "wrote 4 frames and detections.jsonl" in capsys.readouterr().out


def test_images_and_videos_in_one_call(model, images, tmp_path):
    """Each video has one of its own name; a missing picture is one that nobody asked for."""
    write_video(images / "a.mp4", moving(2))
    write_video(tmp_path / "b.mkv", moving(3))
    assert detect(images, tmp_path / "b.mkv", *model) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "green.jpg", "grey.bmp.png", "a.mp4", "b.mkv.mp4", "detections.json", "detections.jsonl"}
    assert [row["file_name"] for row in lines(tmp_path / "out/detections.jsonl")] == ["a.mp4"] * 2 + ["b.mkv"] * 3
    assert (len(frames(tmp_path / "out/a.mp4")), len(frames(tmp_path / "out/b.mkv.mp4"))) == (2, 3)
    assert detect(images, *model[:4], "--output_dir", tmp_path / "lists", "--no_pictures") == 0
    assert {path.name for path in (tmp_path / "lists").iterdir()} == {"detections.json", "detections.jsonl"}


def test_lines_of_an_earlier_run_are_replaced_and_a_link_leads_nowhere(model, tmp_path):
    video = write_video(tmp_path / "a.mp4", moving(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "other.txt").write_text("of somebody")
    (tmp_path / "out/detections.jsonl").symlink_to(tmp_path / "other.txt")
    for _ in range(2):
        assert detect(video, *model, "--no_pictures") == 0
        assert len(lines(tmp_path / "out/detections.jsonl")) == 2
    assert (tmp_path / "other.txt").read_text() == "of somebody"


def test_tiles_and_limits_by_class(model, images, tmp_path):
    assert detect(images / "grey.bmp", *model, "--tiles", 300, 250, "--overlap", 0.1, "--score", "0", "thing 3=1") == 0
    (grey,) = json.loads((tmp_path / "out/detections.json").read_text())
    assert grey["detections"] and not any(row["category_id"] == 3 for row in grey["detections"])


def test_broken_videos_are_named(model, images, tmp_path, capsys):
    """Alone it is an error; beside others it is skipped, like its broken frames."""
    write_sound(tmp_path / "sound.mp4")
    with pytest.raises(UserError, match="sound.mp4: there is no picture in it"):
        detect(tmp_path / "sound.mp4", *model)
    assert not list((tmp_path / "out").iterdir())
    video = noise_video(tmp_path / "noise.mp4", count=20)
    content = bytearray(video.read_bytes())
    content[len(content) // 2:][:1500] = b""
    video.write_bytes(content[:len(content) // 2] + b"\xa5" * 1500 + content[len(content) // 2 + 1500:])
    assert detect(tmp_path / "sound.mp4", video, images / "green.jpg", *model, "--no_pictures") == 1
    errors = capsys.readouterr().err
    assert "error: " in errors and "noise.mp4" in errors and "skipped" in errors and "sound.mp4" in errors
    assert 5 < len(lines(tmp_path / "out/detections.jsonl")) < 20
    assert detect(tmp_path / "sound.mp4", images / "green.jpg", *model, "--no_pictures") == 1
    assert lines(tmp_path / "out/detections.jsonl") == []  # and not those of the run before


def test_nothing_is_written_over_a_video(model, tmp_path):
    video = write_video(tmp_path / "a.mp4", moving(2))
    before = video.read_bytes()
    with pytest.raises(UserError, match="a.mp4 would be written over the input"):
        detect(video, *model[:4], "--output_dir", tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(video, tmp_path / name / "x.mp4")
    with pytest.raises(UserError, match="would be one file"):
        detect(tmp_path / "one/x.mp4", tmp_path / "two/x.mp4", *model)
    assert video.read_bytes() == before and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_interrupted_video_is_playable_and_its_lines_are_complete(model, tmp_path):
    video = write_video(tmp_path / "long.mp4", moving(16) * 60)
    command = [sys.executable, ROOT / "tools/detect.py", video, *model, "--device", "cpu", "--score", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    listing = tmp_path / "out/detections.jsonl"
    for _ in range(600):
        if process.poll() is not None or listing.exists() and listing.read_text().count("\n") > 5:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped" in errors and "Traceback" not in errors
    rows = lines(listing)
    assert 5 < len(rows) < 960 and len(frames(tmp_path / "out/long.mp4")) == len(rows)
    assert sorted(path.name for path in listing.parent.iterdir()) == ["detections.jsonl", "long.mp4"]


BLOCKED = """
import os
import sys

from PIL import Image

sys.path.append("tools")
import inference.sources
from inference.frames import Frame
from tools.detect import main, parse_args
from util.program import run_program

def camera(source, skipped):
    for i in range(int(sys.argv[1])):
        yield Frame(Image.new("RGB", (96, 64)), "camera", i, i / 10)
    print("blocked", flush=True)
    os.read(os.pipe()[0], 1)

inference.sources.read_video = camera
run_program(main, parse_args(sys.argv[2:]))
"""


@pytest.mark.parametrize("count", [0, 1])
def test_ctrl_c_ends_the_wait_for_a_camera_that_sends_nothing(model, tmp_path, count):
    command = [sys.executable, "-c", BLOCKED, str(count), "--camera", "0", *map(str, model), "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "blocked\n", process.stderr.read()
            time.sleep(2)  # until the frames before that are done
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130 and "stopped" in errors and "Traceback" not in errors
    assert len(lines(tmp_path / "out/detections.jsonl")) == count
    assert not count or len(frames(tmp_path / "out/camera0.mp4")) == count


def test_mistakes_are_told(model, images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    (tmp_path / "empty").mkdir()
    for arguments, message in (([images, tmp_path / "copy"], "green.jpg and .*green.jpg would be one file"),
                               ([tmp_path / "empty"], "no image or video in the folder"),
                               ([tmp_path / "x.jpg"], "x.jpg"),
                               ([images, "--score", 2], "score 2.0 must be from 0 to 1"),
                               ([images, "--score", "0.3", "moon=0.4"], "no class 'moon'"),
                               ([images, "--score", "x"], "--score x"),
                               (["--camera", "0", images], "--camera"), ([images, "--tiles", 64, 64, 64], "tiles"),
                               (["--camera", "97"], "camera"), ([], "name an image, folder, video"),
                               (["http://host/a.jpg"], "only rtsp")):
        with pytest.raises(UserError, match=message):
            detect(*arguments, *model)
    done = subprocess.run([sys.executable, ROOT / "tools/detect.py", "x.jpg", "-c", "x", "--resume", "nowhere.pth"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "x.jpg" in done.stderr and "Traceback" not in done.stderr
