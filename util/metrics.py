"""Running means, and the log file of a training."""
import json
import math
from pathlib import Path
from typing import Any

from util.files import atomic_write


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
    """log.txt: one JSON line per epoch, in DETR's format. An unfinished last line of a killed run is removed first."""

    def __init__(self, path: Path):
        self.path = path
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                with atomic_write(path) as temporary:
                    temporary.write_text(whole, encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Values that are not finite are written as null: the line stays valid JSON."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")
