"""Running means, and the log file of a training."""
import json
import math
from pathlib import Path
from typing import Any

from util.files import write_text


class Meters:
    """Means of named numbers over the steps of an epoch."""

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def update(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, dict]:
        return {"sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


class LogFile:
    """log.txt: one JSON line per epoch, in DETR's format. The file is complete at any moment."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line, in place of those of the same epoch and of later ones: a training that was killed, or set back
        to an earlier checkpoint, comes by an epoch again. Records without "epoch" are all kept."""
        kept = [line for line in self._lines() if "epoch" not in record or _epoch(line) < record["epoch"]]
        write_text(self.path, "".join(line + "\n" for line in [*kept, json_line(record)]))

    def epochs(self) -> dict[int, dict[str, Any]]:
        """The records by their epoch."""
        return {int(_epoch(line)): json.loads(line) for line in self._lines() if _epoch(line) >= 0}

    def _lines(self) -> list[str]:
        """Without an unfinished last line."""
        return self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.is_file() else []


def json_line(record: dict[str, Any]) -> str:
    """Numbers that are not finite become null: the line stays valid JSON."""
    return json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()})


def _epoch(line: str) -> float:
    """Of a line of the log; -1 if it has none."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return -1
