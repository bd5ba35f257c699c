"""The end of an epoch: what its checkpoint says of it, and whose checkpoints are the best."""
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from util.errors import UserError
from util.metrics import json_line
from util.saved_state import is_number

AP = "test_coco_eval_bbox"  # a log line's twelve numbers of COCO, the first of which is AP; -1 for nothing to measure


@dataclass(frozen=True)
class FinishedEpoch:
    """What checkpoint.pth at the end of an epoch says of it. Copies and log are written after it and follow from it:
    when a training resumes there, they are written again, because it may have been killed before they were."""

    record: dict[str, Any]  # its line in the log
    is_best: bool  # whether no earlier evaluation was better

    @property
    def ap(self) -> float | None:
        return logged_ap(self.record)

    def entries(self) -> dict[str, Any]:
        """As text: a checkpoint holds plain values only."""
        return {"log": json_line(self.record), "is_best": self.is_best}

    @classmethod
    def of(cls, checkpoint: dict[str, Any], source: str) -> "FinishedEpoch | None":
        """None for a checkpoint within an epoch, and for one of an earlier version."""
        if checkpoint.get("log") is None:
            return None
        try:
            record = json.loads(checkpoint["log"])
            number, is_best = checkpoint["epoch"], checkpoint["is_best"]
            valid = isinstance(number, int) and record["epoch"] == number and isinstance(is_best, bool)
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise UserError(f"{source}: 'log' or 'is_best' is not what a training wrote: the file is damaged")
        return cls(record, checkpoint["is_best"])


def logged_ap(record: Mapping[str, Any]) -> float | None:
    """The val AP in a line of the log, in [0, 1]; None for one without an evaluation, or with nothing to measure."""
    stats = record.get(AP)
    ap = stats[0] if isinstance(stats, list | tuple) and stats else None
    return ap if is_number(ap, 0, 1) else None


def best_epochs(aps: Mapping[int, float | None], count: int) -> set[int]:
    """The epochs of the `count` best APs; of equal ones the earlier."""
    ranked = sorted((-ap, epoch) for epoch, ap in aps.items() if ap is not None)
    return {epoch for _, epoch in ranked[:count]}
