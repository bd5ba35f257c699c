import contextlib
import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from PIL import Image

from inference import video
from inference.frames import Skipped
from inference.video import Opening, frame_count, is_address, is_video, read_video, video_writer
from tests.inference.scenes import moving, noise_video, scene, write_sound, write_video
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def skipped():
    return Skipped(report=lambda message: None)


def test_frames_are_numbered_and_rgb(tmp_path, skipped):
    path = write_video(tmp_path / "a.mp4", moving(5), sound=True)
    frames = list(read_video(path, skipped))
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4] and frame_count(path) == 5
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert {(frame.path, frame.image.mode, frame.image.size) for frame in frames} == {(str(path), "RGB", (96, 64))}
    red, green, blue = frames[0].image.getpixel((10, 20))
    assert red > 200 and green < 60 and blue < 60


def test_a_variable_frame_rate_is_kept_when_reading_and_writing(tmp_path, skipped):
    times = [0, 40, 500, 510, 2000]
    frames = list(read_video(write_video(tmp_path / "a.mp4", moving(5), times), skipped))
    assert [frame.time for frame in frames] == pytest.approx([t / 1000 for t in times])
    with video_writer(tmp_path / "b.mp4") as writer:
        for frame in frames:
            writer.write(frame.image, frame.time)
    again = list(read_video(tmp_path / "b.mp4", skipped))
    assert [frame.time for frame in again] == pytest.approx([t / 1000 for t in times], abs=1e-3)


@pytest.mark.parametrize("degrees, corner", [(90, (5, 90)), (180, (90, 60)), (-90, (58, 5))])
def test_a_video_is_upright_as_its_metadata_say(tmp_path, skipped, degrees, corner):
    """The red corner is at the top left of the stored picture, and is turned counter-clockwise."""
    path = write_video(tmp_path / "a.mp4", [scene(red=(0, 0, 20, 20))], rotation=degrees)
    (frame,) = read_video(path, skipped)
    assert frame.image.size == ((96, 64) if degrees == 180 else (64, 96))
    red, green, _ = frame.image.getpixel(corner)
    assert red > 200 and green < 60


def test_broken_frames_are_skipped_and_counted(tmp_path):
    path = noise_video(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 2000] = b"\xa5" * 2000
    path.write_bytes(content)
    messages = []
    skipped = Skipped(messages.append)
    frames = list(read_video(path, skipped))
    assert 40 < len(frames) < 60 and skipped.count >= 1 and frames[-1].time == pytest.approx(5.9)
    assert all("a.mp4" in message and "broken" in message for message in messages)
    numbers = [frame.number for frame in frames]  # places in the video: those after the damage stay what they were
    assert numbers[:20] == list(range(20)) and numbers[-20:] == list(range(40, 60)) and numbers == sorted(set(numbers))


def test_a_truncated_video_gives_its_beginning_and_says_so(tmp_path):
    path = noise_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    messages = []
    frames = list(read_video(path, Skipped(messages.append)))
    assert 10 < len(frames) < 50 and "a.mp4: it ends after" in messages[-1]
    list(read_video(path, Skipped(messages.append, count=100)))  # what was skipped of others does not count
    list(read_video(path, skipped := Skipped(messages.append, count=15)))
    assert skipped.count == 16 and len(messages) == 2


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_where_a_video_is_cut_it_is_damaged_once(tmp_path, codec):
    """Many places: at some, the decoder gives the part of a picture that is left."""
    whole = noise_video(tmp_path / "whole.mp4", codec=codec).read_bytes()
    for share in range(40, 96, 5):
        (tmp_path / "a.mp4").write_bytes(whole[:len(whole) * share // 100])
        messages = []
        frames = list(read_video(tmp_path / "a.mp4", skipped := Skipped(messages.append)))
        assert [frame.number for frame in frames] == list(range(len(frames)))
        assert messages == [f"{tmp_path / 'a.mp4'}: it ends after {len(frames)} of 60 frames"] and skipped.count == 1


def test_a_video_without_a_whole_picture_is_told_once(tmp_path):
    path = noise_video(tmp_path / "a.mp4", count=2)
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + b"\xa5" * (len(content) - start))
    with pytest.raises(UserError, match="a.mp4: no frame of it can be read"):
        list(read_video(path, skipped := Skipped(lambda message: None)))
    assert skipped.count == 0


def test_a_source_that_breaks_off_is_damaged_once(tmp_path, monkeypatch):
    """Such as a camera that is gone."""
    path, messages = noise_video(tmp_path / "a.mp4"), []
    opened = video._opened

    @contextlib.contextmanager
    def breaking(*arguments):
        with opened(*arguments) as container:
            def packets(stream):
                yield from itertools.islice(container.demux(stream), 30)
                raise OSError(5, "Input/output error")
            yield SimpleNamespace(streams=container.streams, demux=packets)

    monkeypatch.setattr(video, "_opened", breaking)
    assert list(read_video(path, skipped := Skipped(messages.append)))
    assert skipped.count == 1 and "a.mp4: it ends after" in messages[0] and "Input/output error" in messages[0]


def damaged(folder):
    """File name to what the error says."""
    (folder / "text.mp4").write_text("just a text\n" * 50)
    (folder / "empty.mp4").touch()
    (folder / "pointer.mp4").write_text("version https://git-lfs.github.com/spec/v1\n")
    whole = write_video(folder / "whole.mp4", moving(5)).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:len(whole) // 2])  # its index was at the end
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile whole.mp4\n")
    write_sound(folder / "sound.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "name.mp4").write_bytes(whole.replace(b"VideoHandler", b"Video\xcbandler"))
    return {"text.mp4": "cannot open the video .*text.mp4", "empty.mp4": "it is an empty file",
            "pointer.mp4": "Git LFS", "cut.mp4": "cannot open the video .*cut.mp4", "none.mp4": "none.mp4",
            "sound.mp4": "no picture in it, only audio", "folder.mp4": "folder.mp4",
            "name.mp4": "name.mp4: it is damaged",
            "list.mp4": "list.mp4: it is a list of other files"}


def test_what_is_no_video_is_named(tmp_path, skipped):
    for name, message in damaged(tmp_path).items():
        with pytest.raises(UserError, match=message):
            list(read_video(tmp_path / name, skipped))
        assert frame_count(tmp_path / name) is None
    assert skipped.count == 0


def test_cameras_and_addresses_that_do_not_answer_are_named(skipped, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(UserError, match="there is no camera 97 .*/dev/video97"):
        list(read_video(97, skipped))
    with pytest.raises(UserError, match="cannot open the video rtsp://127.0.0.1:9/x: Connection refused"):
        list(read_video("rtsp://user:secret@127.0.0.1:9/x", skipped))
    monkeypatch.setattr("platform.system", lambda: "Plan9")
    with pytest.raises(UserError, match="Plan9"):
        Opening.of(0)
    assert frame_count(0) is None


@pytest.mark.parametrize("name, wanted", [("a.MP4", True), ("b.webm", True), ("c.jpg", False), ("mp4", False)])
def test_videos_are_known_by_name(name, wanted):
    assert is_video(name) == wanted
    assert is_address("rtsp://host/x") and not is_address(name)


def test_odd_and_changing_sizes_are_written(tmp_path, skipped):
    with video_writer(tmp_path / "a.mp4") as writer:
        for i, size in enumerate([(97, 65), (97, 65), (50, 80)]):
            writer.write(Image.new("RGB", size, "red"), i / 10)
        writer.write(Image.new("RGB", (97, 65), "red"), 0.2)  # at the same time as the one before
    frames = list(read_video(tmp_path / "a.mp4", skipped))
    assert len(frames) == 4 and {frame.image.size for frame in frames} == {(96, 64)}
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_an_unfinished_video_leaves_the_earlier_file(tmp_path):
    (tmp_path / "a.mp4").write_text("earlier")
    with pytest.raises(KeyboardInterrupt), video_writer(tmp_path / "a.mp4") as writer:
        writer.write(scene(), 0)
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="no picture"), video_writer(tmp_path / "a.mp4"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "earlier"


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot write .*there is no folder"):
        with video_writer(tmp_path / "gone" / "a.mp4") as writer:
            writer.write(scene(), 0)


def test_a_full_disk_is_told(tmp_path):
    script = """
import resource
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, sys.argv[2])
from inference.video import video_writer

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with video_writer(Path(sys.argv[1])) as writer:
        for i in range(300):
            writer.write(Image.fromarray(np.random.randint(0, 255, (64, 96, 3), np.uint8)), i / 10)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "a.mp4", ROOT], capture_output=True, text=True,
                          timeout=60)
    assert done.stdout.startswith(f"UserError cannot write {tmp_path / 'a.mp4'}"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(monkeypatch, skipped):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        video._av()
