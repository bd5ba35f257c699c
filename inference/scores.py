"""From what a user says of scores to a limit for each category id."""
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from util.class_names import comparable
from util.errors import UserError, nearest
from util.model_card import ModelCard

DEFAULT = 0.3  # of classes for which nothing else is said
REST = "*"  # in a dict: all other classes
Score = float | str | Mapping[str, float]


def score_limits(score: Score, card: ModelCard) -> Tensor:
    """The least score of a detection of each category id, [num_classes].

    score: from 0 to 1; or a dict by class name, where "*" stands for all other classes (default 0.3); or "best", the
    scores of the best F1 in `card`, and 0.3 for classes without one. Raises UserError for anything else, a class that
    the detector does not know, and a card without thresholds.
    """
    num_classes = int(card.config["num_classes"])
    if score == "best":
        if not card.thresholds:
            raise UserError("score='best' needs the scores of best F1 in the weights, and these carry none: "
                            "tools/export_weights.py takes them from the summary of an evaluation. Pass a number")
        limits = torch.full((num_classes,), DEFAULT)
        for label, value in card.thresholds.items():
            limits[label] = value
        return limits
    if isinstance(score, Mapping):
        limits = torch.full((num_classes,), _checked(score.get(REST, DEFAULT), REST))
        ids: dict[str, list[int]] = {}
        for label, name in card.class_names.items():
            ids.setdefault(comparable(name), []).append(label)
        for name, value in score.items():
            if name == REST:
                continue
            known = ids.get(comparable(name)) if isinstance(name, str) else None
            if known is None:
                names = list(card.class_names.values())
                listed = f" Known: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else ""
                raise UserError(f"score: the detector has no class {name!r}.{nearest(str(name), names)}{listed}")
            limits[known] = _checked(value, name)
        return limits
    return torch.full((num_classes,), _checked(score, ""))


def parse_score(words: list[str]) -> Score:
    """From a command line: a number, "best", or NAME=NUMBER for some classes, where a number stands for the rest."""
    if words == ["best"]:
        return "best"
    scores: dict[str, float] = {}
    for word in words:
        name, equals, number = word.rpartition("=")
        name = name if equals else REST
        try:
            value = float(number)
        except ValueError:
            raise UserError(f"--score {word}: pass a number from 0 to 1, best, or NAME=NUMBER ... (images and videos "
                            "come before --score)") from None
        if name in scores:
            raise UserError(f"--score: there are two values for {'all classes' if name == REST else name}")
        scores[name] = value
    return scores[REST] if list(scores) == [REST] else scores


def _checked(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 <= value <= 1:
        raise UserError(f"score {value!r}{f' of {name}' if name else ''} must be from 0 to 1"
                        + ("" if name else ", 'best', or a dict by class name"))
    return float(value)
