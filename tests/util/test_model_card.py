import json

import pytest

from util.errors import UserError
from util.model_card import ModelCard

CONFIG = {"modelname": "dino", "num_classes": 4, "sizes": [400, 640], "image_size": None}
CARD = ModelCard(CONFIG, {1: "RBC", 3: "naïve"}, {1: 0.4, 3: 0.0}, {"AP": 0.6}, "bccd val", "abc")


def text(**changes):
    return json.dumps(CARD.to_dict() | changes)


def test_a_card_survives_json():
    assert ModelCard.from_json(text(), "x") == CARD


def test_tuples_become_lists():
    card = ModelCard(CARD.config | {"sizes": (400, 640)}, {})
    assert ModelCard.from_json(json.dumps(card.to_dict()), "x").config == CARD.config


def test_unknown_entries_are_left_out():
    assert ModelCard.from_json(text(later="x"), "x") == CARD


@pytest.mark.parametrize("broken, message", [
    ("{", "no JSON"), ("[" * 100_000, "no JSON"), ("[]", "format None"), (text(format=2), "format 2"),
    (text(config=3), "not one of a detector"), (text(config={"num_classes": 4}), "not one of a detector"),
    (text().replace("null", "[" * 700 + "]" * 700), "not one of a detector"),
    (text(config={"modelname": "dino", "num_classes": "auto"}), "num_classes is 'auto'"),
    (text(config={"modelname": "dino", "num_classes": 10**9}), "num_classes is 1000000000"),
    (text(class_names=[1]), "class_names must be"), (text(class_names={"a": "b"}), "class_names must be"),
    (text(class_names={"1": 5}), "class_names must be"), (text(class_names={"4": "WBC"}), "category id 4"),
    (text(class_names={"-1": "WBC"}), "class_names must be"), (text(thresholds={"9": 0.3}), "category id 9"),
    (text(thresholds=[["1", 0.5]]), "thresholds must be an object"),
    (text(thresholds={"1": 1.5}), "thresholds"), (text(thresholds={"1": "0.3"}), "thresholds"),
    (text(measured={"AP": "high"}), "measured"), (text(measured={"AP": float("nan")}), "measured"),
    (text(measured_on=3), "texts"), (text(commit=None), "texts"),
])
def test_what_contradicts_itself_is_refused_with_the_name_of_the_source(broken, message):
    with pytest.raises(UserError, match=f"x.onnx: .*{message}"):
        ModelCard.from_json(broken, "x.onnx")
