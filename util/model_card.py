"""What travels with a detector's weights, as JSON: enough to build and to use it. Read as data, never executed."""
import json
from dataclasses import dataclass, field
from typing import Any

from util.class_names import ClassNames
from util.errors import UserError
from util.saved_state import MOST_CLASSES, is_class_names, is_number, is_plain

FORMAT = 1
KEY = "lite_detr"  # of the card in the metadata of a weights file or an exported file


@dataclass(frozen=True)
class ModelCard:
    """config: its keys and values; tuples become lists. class_names: of category ids. thresholds: the score of best F1,
    in [0, 1], of category ids for which one was measured. measured: numbers of COCO's evaluation, such as {"AP": 0.6},
    in [0, 1], and measured_on: the data set; commit: of the program that wrote the weights. Empty where not known.
    """

    config: dict[str, Any]
    class_names: ClassNames
    thresholds: dict[int, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    measured_on: str = ""
    commit: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: ids are texts."""
        return {"format": FORMAT, "config": self.config,
                "class_names": {str(i): name for i, name in self.class_names.items()},
                "thresholds": {str(i): score for i, score in self.thresholds.items()},
                "measured": self.measured, "measured_on": self.measured_on, "commit": self.commit}

    @classmethod
    def from_json(cls, text: str, source: str) -> "ModelCard":
        """Entries of other names are left out. Raises UserError that names `source` for what is no card, for one of
        another format, and for one that contradicts itself."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: its metadata are no JSON ({error})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise UserError(f"{source}: its metadata are of format {found!r}, this program reads {FORMAT}: write the "
                            "file again with this version")
        names, thresholds = (_by_id(content.get(name), name, source) for name in ("class_names", "thresholds"))
        rest: tuple[Any, ...] = tuple(content.get(name) for name in ("measured", "measured_on", "commit"))
        card = cls(content.get("config", {}), names, thresholds, *rest)
        fault = card.fault()
        if fault:
            raise UserError(f"{source}: its metadata are damaged: {fault}")
        return card

    def fault(self) -> str:
        """What contradicts itself: in words, or empty if nothing does."""
        config = self.config
        if not (isinstance(config, dict) and is_plain(config) and isinstance(config.get("modelname"), str)):
            return "the config is not one of a detector"
        if self.class_names and not is_class_names(self.class_names):
            return "class_names must be names of category ids"
        num_classes = self.config.get("num_classes")
        if not (isinstance(num_classes, int) and 0 < num_classes <= MOST_CLASSES):
            return f"num_classes is {num_classes!r}"
        beyond = [i for i in (*self.class_names, *self.thresholds) if not 0 <= i < num_classes]
        if beyond:
            return f"it names the category id {beyond[0]}, but the detector knows only ids below {num_classes}"
        if not all(is_number(score, 0, 1) for score in self.thresholds.values()):
            return "thresholds must be from 0 to 1"
        if not (isinstance(self.measured, dict) and all(is_number(x, 0, 1) for x in self.measured.values())):
            return "what was measured must be numbers from 0 to 1"
        if not (isinstance(self.measured_on, str) and isinstance(self.commit, str)):
            return "measured_on and commit must be texts"
        return ""


def _by_id(entries: Any, name: str, source: str) -> dict[int, Any]:
    try:
        return {int(i): value for i, value in entries.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{source}: its metadata are damaged: {name} must be an object of category ids") from error
