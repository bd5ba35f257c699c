import socket
from dataclasses import replace

import pytest

from inference.page.layout import build_page, serve
from tests.inference.page.conftest import BAD_NAME
from util.errors import UserError

gradio = pytest.importorskip("gradio", reason="pip install gradio")


def header(page):
    return next(block.value for block in page.blocks.values() if "<header>" in str(getattr(block, "value", "")))


def test_the_header_says_what_the_detector_is(detector, monkeypatch):
    backend = detector.predictor.backend
    monkeypatch.setattr(backend, "card", replace(backend.card, measured={"AP": 0.5804}, measured_on="blood & cells"))
    text = header(build_page(detector, "<b>mine</b>", 0.3))
    assert "&lt;b&gt;mine" in text and "AP 0.580 on blood &amp; cells" in text and "finds cell, &lt;img" in text
    monkeypatch.setattr(backend, "card", replace(backend.card, class_names={i: f"c{i}" for i in range(9)}))
    assert "c5 and 3 more" in header(build_page(detector, "a", 0.3))
    assert BAD_NAME not in text


def test_the_page_reports_to_nobody_and_keeps_uploads_for_an_hour(detector):
    page = build_page(detector, "a", 0.3)
    assert page.analytics_enabled is False and page.delete_cache[1] == 3600


def test_a_taken_port_is_told(detector):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}, which another program may use"):
            serve(build_page(detector, "a", 0.3), "127.0.0.1", port)
