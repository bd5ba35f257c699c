"""The page as a program, in headless Chromium."""
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from inference.video import video_writer
from tests.browser import ARGUMENTS, chromium
from tests.inference.detectors import save_detector
from tests.inference.page.conftest import BAD_NAME
from tools.app import main, parse_args
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NAMES = {0: "cell", 1: BAD_NAME, 2: "plate", 3: "dust"}
GRADIENT = Image.linear_gradient("L").resize((160, 120)).convert("RGB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the program is started, with pictures and a video."""
    folder = tmp_path_factory.mktemp("app")
    GRADIENT.save(folder / "gradient.png")
    GRADIENT.rotate(90).save(folder / "turned.tif")
    (folder / "broken.jpg").write_bytes(b"no picture")
    with video_writer(folder / "clip.mp4") as writer:
        for number in range(3):
            writer.write(GRADIENT.rotate(number), number / 10)
    return folder


@pytest.fixture(scope="module")
def address(tiny_dino, tmp_path_factory, folder):
    """Of the page of a detector with random weights. Its temporary folder is gone once the program was ended."""
    pytest.importorskip("gradio", reason="pip install gradio")
    pytest.importorskip("av", reason="pip install av")
    weights, config = save_detector(tiny_dino(num_classes=4, dn_labelbook_size=4),
                                    tmp_path_factory.mktemp("model") / "model", NAMES)
    temporary = tmp_path_factory.mktemp("temporary")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"TMPDIR": str(temporary), "HTTP_PROXY": "http://127.0.0.1:9",
                                "HTTPS_PROXY": "http://127.0.0.1:9", "GRADIO_SHARE": "True"}
    command = [sys.executable, ROOT / "tools/app.py", weights, "-c", config, "--port", port, "--device", "cpu"]
    with subprocess.Popen([str(word) for word in command], cwd=folder, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        try:
            wanted = f"http://127.0.0.1:{port}/"
            said = program.stdout.readline()
            assert said == f"open {wanted} in a browser; Ctrl-C ends the page\n", said + program.stdout.read()
            yield wanted
            program.send_signal(signal.SIGTERM)
            assert program.wait(30) == 128 + signal.SIGTERM
        finally:
            program.kill()
    assert not list(temporary.glob("lite_detr_page_*"))
    assert {path.name for path in folder.iterdir()} == {"gradient.png", "turned.tif", "broken.jpg", "clip.mp4"}


@pytest.fixture(scope="module")
def browser():
    """With a camera, which shows a test picture."""
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.browser.ARGUMENTS", [*ARGUMENTS, *camera])
        with chromium() as browser:
            yield browser


@pytest.fixture
def opened(address, browser_page):
    """The page, which asked nobody else for anything and had no error when the test ends."""
    browser_page.page.set_default_timeout(30_000)
    browser_page.page.goto(address)
    yield browser_page.page
    assert [url for url in browser_page.requests if not url.startswith((address, "data:", "blob:"))] == []
    assert browser_page.errors == [] and browser_page.page.title() == "weights · Lite DETR"


def upload(page, box, *files):
    page.set_input_files(f"#{box} input[type=file]", [str(file) for file in files])


def boxes(page):
    """How many the page says that it shows."""
    return sum(map(int, page.locator("#summary .chip b").all_inner_texts()))


def row(page, number):
    """The cells of a row of the table."""
    return page.locator("#table [role=row]").nth(number + 1).locator("[role=gridcell]")


def waits(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_visit(opened, folder):
    upload(opened, "files", folder / "gradient.png", folder / "turned.tif", folder / "broken.jpg")
    opened.wait_for_selector("#picture img")
    assert "cannot read the image broken.jpg" in opened.inner_text("#messages")
    assert "gradient.png · 160×120 px" in opened.inner_text("#summary") and BAD_NAME in opened.inner_text("#classes")
    before = boxes(opened)
    assert before > 5

    opened.fill("#score input[type=number]", "0.6")  # the threshold
    opened.press("#score input[type=number]", "Enter")
    waits(lambda: 0 < boxes(opened) < before)
    opened.fill("#score input[type=number]", "0.3")
    opened.press("#score input[type=number]", "Enter")
    waits(lambda: boxes(opened) == before)

    first = opened.locator("#classes label").first  # the classes
    first.click()
    waits(lambda: boxes(opened) < before)
    first.click()
    waits(lambda: boxes(opened) == before)

    left, top, width, height = map(int, row(opened, 0).all_inner_texts()[-4:])  # a box
    scale = opened.locator("#picture img").bounding_box()["width"] / 160
    centre = [min(max(start + side / 2, 1), limit) * scale for start, side, limit in
              ((left, width, 159), (top, height, 119))]
    opened.locator("#picture img").click(position={"x": centre[0], "y": centre[1]})
    opened.wait_for_selector("#attention img")
    assert re.match(r"#\d+ .* query \d+", opened.inner_text("#chosen"))
    assert opened.locator("#legend .level").count() == 3
    source = opened.get_attribute("#attention img", "src")
    opened.locator("#head label").nth(2).click()
    waits(lambda: opened.get_attribute("#attention img", "src") != source)

    row(opened, 2).nth(1).click()
    waits(lambda: opened.inner_text("#chosen").startswith("#3 "))

    opened.locator("#strip button.thumbnail-item, #strip button.gallery-item, #strip button").nth(1).click()
    waits(lambda: "turned.tif" in opened.inner_text("#summary"))
    assert "Click a box" in opened.inner_text("#chosen") and not opened.is_visible("#messages .problem")


@pytest.mark.slow
def test_video_and_camera(opened, folder):
    opened.get_by_role("tab", name="Video").click()
    upload(opened, "video_file", folder / "clip.mp4")
    opened.wait_for_selector("#video_file >> text=clip")
    opened.click("#video_start")
    opened.wait_for_selector("#video_result video")
    assert "frame 3 of 3" in opened.inner_text("#video_status")
    waits(lambda: opened.evaluate("document.querySelector('#video_result video').videoWidth") > 0)
    opened.get_by_role("tab", name="Live camera").click()
    opened.click("#live_camera >> text=Click to Access Webcam")
    opened.click("#live_camera button:has-text('Record')")
    opened.wait_for_selector("#live_picture img")
    assert " ms" in opened.inner_text("#live_status")
    opened.click("#live_camera button:has-text('Stop')")


@pytest.mark.slow
def test_two_visitors_do_not_see_each_other(address, opened, browser, folder):
    with contextlib.closing(browser.new_context()) as context:
        other = context.new_page()
        other.goto(address)
        upload(other, "files", folder / "gradient.png")
        upload(opened, "files", folder / "turned.tif")
        other.wait_for_selector("#picture img")
        opened.wait_for_selector("#picture img")
        assert "gradient.png" in other.inner_text("#summary") and "turned.tif" in opened.inner_text("#summary")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "README.md"), "../../../etc/passwd", "gradient.png"])
def test_no_file_of_the_computer_can_be_fetched(address, path):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}gradio_api/file={path}")
    assert refused.value.code in (403, 404)


@pytest.mark.parametrize("flags, message", [
    (["--score", "2"], "--score 2.0 must be from 0 to 1"), (["--port", "0"], "--port 0 must be from 1 to 65535"),
    (["--port", "70000"], "--port 70000"), ([], "nowhere.pth")])
def test_mistakes_are_told(flags, message):
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(UserError, match=message), pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.environ", dict(os.environ))
            main(parse_args(["nowhere.pth", *flags]))
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_only_this_computer_can_open_the_page_unless_it_is_asked_for():
    assert parse_args(["a.pth"]).host == "127.0.0.1"
