import numpy as np
import pytest

from inference.scores import parse_score, score_limits
from util.errors import UserError
from util.model_card import ModelCard

CARD = ModelCard({"modelname": "dino", "num_classes": 4}, {1: "red cell", 2: "White Cell", 3: "plate"},
                 {1: 0.6, 3: 0.2})


@pytest.mark.parametrize("score, wanted", [
    (0, [0, 0, 0, 0]), (np.float32(0.25), [0.25] * 4), (0.5, [0.5] * 4), (1, [1] * 4), ({}, [0.3] * 4),
    ({"red cell": 0.7}, [0.3, 0.7, 0.3, 0.3]), ({"white_cell": 1, "*": 0.1}, [0.1, 0.1, 1, 0.1]),
    ("best", [0.3, 0.6, 0.3, 0.2])])
def test_limits_of_the_category_ids(score, wanted):
    assert score_limits(score, CARD).tolist() == pytest.approx(wanted)


def test_a_name_of_several_ids_means_all():
    card = ModelCard({"num_classes": 3}, {0: "cell", 2: "Cell"})
    assert score_limits({"cell": 0.5, "*": 0}, card).tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("score, message", [
    (1.5, "score 1.5 must be from 0 to 1"), (-0.1, "from 0 to 1"), (float("nan"), "from 0 to 1"), (None, "'best'"),
    (True, "score True"), ("high", "score 'high'"), ([0.5], r"score \[0.5\]"),
    ({"red": 0.5}, "no class 'red'.*red cell"), ({"red cell": 2}, "score 2 of red cell"), ({1: 0.5}, "no class 1"),
    ({"*": "x"}, "score 'x'")])
def test_what_is_no_score_is_told(score, message):
    with pytest.raises(UserError, match=message):
        score_limits(score, CARD)


def test_best_needs_measured_scores():
    with pytest.raises(UserError, match="these carry none"):
        score_limits("best", ModelCard({"num_classes": 4}, {}))


@pytest.mark.parametrize("words, wanted", [
    (["0.4"], 0.4), (["best"], "best"), (["red cell=0.4"], {"red cell": 0.4}),
    (["a=b=0.4", "0.2"], {"a=b": 0.4, "*": 0.2})])
def test_words_of_a_command_line(words, wanted):
    assert parse_score(words) == wanted


@pytest.mark.parametrize("words", [
    ["best", "0.4"], ["0.3", "0.4"], ["a=0.1", "a=0.2"], ["a="], ["x.jpg"], ["0.3", "x.jpg"]])
def test_words_that_are_no_score_are_told(words):
    with pytest.raises(UserError, match="--score"):
        parse_score(words)
