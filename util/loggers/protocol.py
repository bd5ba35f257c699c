"""What a logger of a training can do. A new one is a class of this kind and a line in LOGGERS (several.py)."""
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "lite-detr"  # what the services gather the runs under


@dataclass(frozen=True)
class Place:
    """The run that a logger begins, or continues where there is one with this id."""

    folder: Path  # the run's output folder
    run_id: str  # of this folder alone, the same when the training is resumed in it
    first_epoch: int  # what follows is about this epoch and later ones

    @property
    def name(self) -> str:
        """For people; several runs may have the same."""
        return self.folder.name


class RunLogger(Protocol):
    """Any method may raise: several.py then goes on without the logger."""

    def config(self, values: Mapping[str, Any]) -> None:
        """What the run does, once it begins or goes on."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Finite numbers, whose names are paths such as "train/loss"."""

    def text(self, name: str, markdown: str) -> None:
        """A text of the whole run, such as its summary."""

    def picture(self, name: str, path: Path) -> None:
        """A picture of the whole run, from a PNG."""

    def close(self, finished: bool) -> None:
        """finished: whether the training reached its end; otherwise it may go on later."""


def default_environment(**values: str) -> None:
    """Sets environment variables that the user has not set."""
    for name, value in values.items():
        os.environ.setdefault(name, value)
