from pathlib import Path

import pytest
from PIL import Image

from inference.frames import Skipped
from inference.page.video_tab import annotate, build_live_tab, build_video_tab
from inference.video import read_video, video_writer
from tests.inference.scenes import noise_video
from util.errors import UserError

gradio = pytest.importorskip("gradio", reason="pip install gradio")
pytest.importorskip("av", reason="pip install av")
GRADIENT = Image.linear_gradient("L").resize((160, 120)).convert("RGB")


@pytest.fixture
def clip(tmp_path):
    with video_writer(tmp_path / "clip.mp4") as writer:
        for number in range(4):
            writer.write(GRADIENT.rotate(5 * number), number / 10)
    return tmp_path / "clip.mp4"


@pytest.fixture
def page(detector):
    with gradio.Blocks(analytics_enabled=False) as page:
        build_video_tab(detector, 0.3)
        build_live_tab(detector, 0.3)
    return page


def test_a_video_is_annotated(detector, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.page.video_tab.PREVIEW_EVERY", 0)
    steps = list(annotate(detector, clip, tmp_path / "out.mp4", 0.5))
    assert len(steps) == 5  # of each frame, and the end
    assert "frame 1 of 4" in steps[0][1] and "frame 4 of 4" in steps[-1][1] and "clip.mp4" in steps[-1][1]
    assert "the most in one frame" in steps[-1][1] and "<img" not in steps[-1][1]
    frames = list(read_video(tmp_path / "out.mp4", Skipped()))
    assert [round(frame.time, 3) for frame in frames] == [0, 0.1, 0.2, 0.3]


def test_the_page_shows_how_far_it_is_and_then_the_video(page, clip, handler):
    (run,) = (function.fn for function in page.fns.values() if function.name == "run")
    parts = {}
    for step in run(str(clip), 0.5):
        parts |= {part.elem_id: value for part, value in step.items()}
        if parts["video_result"]["visible"]:
            assert Path(parts["video_result"]["value"]).stat().st_size > 0
    assert parts["video_result"]["visible"] and not Path(parts["video_result"]["value"]).exists()


@pytest.mark.parametrize("name, content, message", [
    ("broken.mp4", b"nothing" * 50, "broken.mp4"), ("picture.png", b"nothing", "picture.png is no video"),
    ("empty.webm", b"", "empty.webm"), (None, b"", "There is no video")])
def test_what_is_no_video_is_a_message(page, tmp_path, name, content, message):
    (run,) = (function.fn for function in page.fns.values() if function.name == "run")
    if name is not None:
        (tmp_path / name).write_bytes(content)
    parts = {part.elem_id: value for part, value in
             list(run(None if name is None else str(tmp_path / name), 0.5))[-1].items()}
    assert message in parts["video_status"] and "problem" in parts["video_status"]
    assert str(tmp_path) not in parts["video_status"]


def test_a_cancelled_run_leaves_nothing(detector, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("inference.page.video_tab.PREVIEW_EVERY", 0)
    steps = annotate(detector, clip, tmp_path / "out.mp4", 0.5)
    next(steps)
    steps.close()
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_skipped_frames_are_counted(detector, tmp_path):
    path = noise_video(tmp_path / "noise.mp4", count=12, gop=4)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 2000] = b"\xa5" * 2000
    path.write_bytes(content)
    *_, (picture, text) = annotate(detector, path, tmp_path / "out.mp4", 0.5)
    assert "Left out, because they cannot be read: " in text and picture.width >= 96


def test_a_picture_of_the_camera_is_searched(page, handler):
    look = handler(page, "live_camera", "stream")
    shown, _ = look(GRADIENT.convert("RGBA"), 0.5)
    assert shown["live_picture"].size[0] >= 160 and " ms" in shown["live_status"]
    assert "live_picture" not in look(None, 0.5)[0]


def test_what_is_no_video_raises(detector, tmp_path):
    with pytest.raises(UserError, match="a.txt is no video"):
        next(annotate(detector, tmp_path / "a.txt", tmp_path / "out.mp4", 0.5))
