import threading

import pytest
import torch
from PIL import Image

from inference.backends import Backend
from inference.page.shared import OneAtATime, SharedDetector
from inference.predictor import Predictor
from tests.inference.detectors import save_detector
from util.model_card import ModelCard

IMAGES = [Image.linear_gradient("L").rotate(turn).resize((160, 120)).convert("RGB") for turn in (0, 90, 180, 270)]


class Busy(Backend):
    """Finds nothing, and notes whether it was called while it was at work."""

    card = ModelCard({"modelname": "dino", "num_classes": 3}, {1: "cell"})
    at_work, calls, together = 0, 0, False

    def input_size(self, width, height):
        return height, width

    def detect(self, images, sizes):
        self.at_work += 1
        self.together |= self.at_work > 1
        threading.Event().wait(0.05)
        self.calls += 1
        self.at_work -= 1
        return [{"scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
                for _ in images]


def at_once(*functions):
    """What the functions return, each in a thread of its own."""
    results = [None] * len(functions)

    def run(place, function):
        results[place] = function()

    threads = [threading.Thread(target=run, args=entry) for entry in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_one_call_follows_the_other():
    busy = Busy()
    shared = OneAtATime(busy)
    at_once(*[lambda: shared.detect([None], [(1, 1)])] * 4)
    assert busy.calls == 4 and not busy.together and shared.input_size(3, 2) == (2, 3) and shared.card is busy.card


def test_an_exported_file_is_looked_at_without_attention(monkeypatch):
    monkeypatch.setattr("inference.predictor.open_backend", lambda *args: Busy())
    detector = SharedDetector(Predictor("model.onnx"))
    seen = detector.look(IMAGES[0], "a")
    assert not detector.shows_attention and seen.inspected.layers == [] and seen.classes() == []
    assert seen.inspected.size == (160, 120)


def test_visitors_at_once_get_their_own_results(tiny_config, tmp_path):
    """Among them one who looks at a video, of which nothing is recorded."""
    predictor = Predictor(*save_detector(tiny_config, tmp_path / "model"))
    wanted = [predictor(image, score=0.05).boxes for image in IMAGES]
    model = predictor.backend.model
    detector = SharedDetector(predictor)
    assert detector.shows_attention
    looks = [lambda image=image: detector.look(image, "a") for image in IMAGES]
    *seen, frames = at_once(*looks, lambda: list(predictor(IMAGES * 2, score=0.05, stream=True)))
    for mine, other in zip([*[s.found["boxes"] for s in seen], *[f.boxes for f in frames]], wanted * 3, strict=True):
        torch.testing.assert_close(mine, other)
    assert all(len(s.inspected.layers) == 2 and s.milliseconds > 0 for s in seen)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_fails_does_so_before_the_first_visit(monkeypatch):
    class Broken(Busy):
        def detect(self, images, sizes):
            raise ValueError("broken")

    monkeypatch.setattr("inference.predictor.open_backend", lambda *args: Broken())
    with pytest.raises(ValueError, match="broken"):
        SharedDetector(Predictor("model.onnx"))
