import sys

import pytest
from PIL import Image

from inference.window import Window
from util.errors import UserError


def test_no_screen_is_told(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":97")
    if sys.platform == "linux":
        with pytest.raises(UserError, match="no screen|tkinter"):
            Window("title")


def test_without_tkinter_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tkinter", None)
    with pytest.raises(UserError, match="python3-tk"):
        Window("title")


def test_a_window_shows_pictures_until_it_is_closed():
    try:
        window = Window("title")
    except UserError as error:
        pytest.skip(str(error))
    window.show(Image.new("RGB", (5000, 4000), "red"))
    assert not window.closed
    window.close()
    window.show(Image.new("RGB", (50, 40)))
    assert window.closed
