from types import SimpleNamespace

import pytest
from PIL import Image

from inference.page.images_tab import build_images_tab
from inference.page.seen import Seen
from inference.page.shared import SharedDetector
from inference.predictor import Predictor
from tests.inference.page.conftest import BAD_NAME
from tests.inference.page.test_shared import Busy

gradio = pytest.importorskip("gradio", reason="pip install gradio")
PARTS = (None, None, [], False)  # layer, head, levels and "whole image" before anything was explained


def build(detector):
    with gradio.Blocks(analytics_enabled=False) as page:
        build_images_tab(detector, 0.3)
    return page


@pytest.fixture
def page(detector):
    return build(detector)


@pytest.fixture
def image(tmp_path):
    Image.linear_gradient("L").resize((160, 120)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.fixture
def seen(page, image, handler):
    _, state = handler(page, "files", "upload")([image], [], 0.3)
    return next(value for value in state if isinstance(value, Seen))


def test_an_image_is_shown_with_its_classes_and_rows(page, image, handler):
    shown, state = handler(page, "files", "upload")([image], [], 0.6)
    (seen,) = (value for value in state if isinstance(value, Seen))
    visible = seen.visible(0.6, seen.classes())
    assert 0 < len(visible) < len(seen.found["scores"]) and len(shown["table"]["value"]) == len(visible)
    assert {label for _, label in shown["classes"]["choices"]} == set(shown["classes"]["value"]) == set(seen.classes())
    assert shown["picture"]["value"].size == (960, 720) and shown["files"] is None
    assert shown["messages"]["visible"] is False and not shown["strip"]["visible"]
    assert BAD_NAME in seen.names.values() and "<img" not in shown["summary"]["value"]


def test_a_broken_file_is_named_and_the_others_are_shown(page, image, handler, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    shown, state = handler(page, "files", "upload")([str(tmp_path / "broken.jpg"), image, image], [], 0.3)
    assert "broken.jpg" in shown["messages"]["value"] and shown["messages"]["visible"]
    assert len(shown["strip"]["value"]) == 2 and shown["picture"]["visible"]
    shown, state = handler(page, "camera", "change")(str(tmp_path / "broken.jpg"), [], 0.3)
    assert set(shown) == {"messages", "files"} and state == []
    assert "picture" not in handler(page, "camera", "change")(None, [], 0.3)[0]


def test_an_image_of_the_strip_is_shown_or_missed(page, image, handler, tmp_path):
    _, (strip, *_) = handler(page, "files", "upload")([image, image], [], 0.3)
    select = handler(page, "strip", "select")
    assert select(SimpleNamespace(index=1), strip, 0.3)[0]["picture"]["visible"]
    assert "picture" not in select(SimpleNamespace(index=9), strip, 0.3)[0]
    (tmp_path / "a.png").unlink()  # as the page does after an hour
    shown, _ = select(SimpleNamespace(index=0), strip, 0.3)
    assert "cannot read the image a.png" in shown["messages"]["value"] and "picture" not in shown


@pytest.mark.parametrize("by_row", [False, True])
def test_a_click_explains_the_box(page, seen, handler, by_row):
    classes = seen.classes()
    place = seen.visible(0.5, classes)[1]
    if by_row:
        event = SimpleNamespace(row_value=[place + 1, "cell"])
        shown, (chosen, _) = handler(page, "table", "select")(event, seen, 0.5, classes, *PARTS)
    else:
        left, top, right, bottom = (seen.found["boxes"][place] * seen.scale).tolist()
        place = seen.at((left + right) / 2, (top + bottom) / 2, seen.visible(0.5, classes))
        event = SimpleNamespace(index=[(left + right) / 2, (top + bottom) / 2])
        shown, (chosen, _) = handler(page, "picture", "select")(event, seen, 0.5, classes, *PARTS)
    assert chosen == place and f"#{place + 1} " in shown["chosen"]
    assert shown["attention"]["visible"] and shown["layer"]["value"] == 1 and shown["head"]["value"] == -1
    assert shown["levels"]["value"] == [0, 1, 2]
    head = handler(page, "head", "input")(seen, chosen, 0, 1, [0, 2], True)[0]
    assert head["attention"]["value"].tobytes() != shown["attention"]["value"].tobytes()


def test_a_click_beside_all_boxes_ends_the_explanation(page, seen, handler):
    shown, (chosen, _) = handler(page, "picture", "select")(SimpleNamespace(index=[1, 1]), seen, 0.99, [], *PARTS)
    assert chosen is None and not shown["attention"]["visible"] and "Click a box" in shown["chosen"]


def test_the_choice_stays_as_long_as_it_is_visible(page, seen, handler):
    score = float(seen.found["scores"][1])
    change = handler(page, "score", "change")
    shown, (chosen,) = change(seen, score, seen.classes(), 1)
    assert chosen == 1 and "attention" not in shown
    shown, (chosen, _) = change(seen, score + 1e-4, seen.classes(), 1)
    assert chosen is None and len(shown["table"]["value"]) == 1
    others = [label for label in seen.classes() if label != int(seen.found["labels"][0])]
    shown, (chosen, _) = handler(page, "classes", "input")(seen, 0.05, others, 0)
    assert chosen is None and seen.rows([0])[0] not in shown["table"]["value"]


def test_events_before_the_first_image_do_nothing(page, handler):
    event = SimpleNamespace(index=[1, 1], row_value=["", ""])
    assert handler(page, "score", "change")(None, 0.3, [], None) == ({}, [None])
    assert handler(page, "picture", "select")(event, None, 0.3, [], *PARTS) == ({}, [None])
    assert handler(page, "table", "select")(event, None, 0.3, [], *PARTS)[0] == {}
    assert set(handler(page, "whole", "input")(None, None, 0, 0, [], True)[0]) == {"attention"}


def test_an_exported_file_says_that_it_shows_no_attention(image, handler, monkeypatch):
    monkeypatch.setattr("inference.predictor.open_backend", lambda *args: Busy())
    page = build(SharedDetector(Predictor("model.onnx")))
    shown, state = handler(page, "files", "upload")([image], [], 0.3)
    assert "only shown for PyTorch weights" in shown["chosen"] and "nothing found" in shown["summary"]["value"]
