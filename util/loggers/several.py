"""The loggers of a run together. One that fails is left out from then on: log.txt has the same numbers."""
import functools
import importlib
import logging
import math
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import write_text
from util.loggers.protocol import Place, RunLogger
from util.optional import require

logger = logging.getLogger(__name__)
LOGGERS: dict[str, tuple[str, str]] = {  # flag: module and class, imported where it is used
    "tensorboard": ("util.loggers.board", "BoardLogger"), "wandb": ("util.loggers.wandb_run", "WandbLogger"),
    "mlflow": ("util.loggers.mlflow_run", "MlflowLogger"), "trackio": ("util.loggers.trackio_run", "TrackioLogger")}
DEFAULT = ("tensorboard",)
RUN_ID = "run_id.txt"  # in the output folder: what services know the run by


def check_installed(names: Iterable[str]) -> None:
    """Raises UserError for a logger whose packages are not installed."""
    for name in names:
        require(name)
        if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
            require("sqlalchemy", "alembic")  # for a database of its own; mlflow-skinny comes without


class RunLoggers:
    """A RunLogger that passes everything on to others."""

    def __init__(self, openers: Mapping[str, Callable[[], RunLogger]]):
        """openers: what opens each logger, by its name."""
        self._open: dict[str, RunLogger] = {}
        for name, opener in openers.items():
            one = self._try(name, opener)
            if one is not None:
                self._open[name] = one

    def config(self, values: Mapping[str, Any]) -> None:
        self._each("config", values)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self._each("scalars", {name: value for name, value in values.items() if math.isfinite(value)}, epoch)

    def text(self, name: str, markdown: str) -> None:
        self._each("text", name, markdown)

    def picture(self, name: str, path: Path) -> None:
        self._each("picture", name, path)

    def close(self, finished: bool) -> None:
        self._each("close", finished)
        self._open = {}

    def _each(self, method: str, *arguments: Any) -> None:
        for name, one in list(self._open.items()):
            self._try(name, getattr(one, method), *arguments)

    def _try(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # whatever a service, its client or the disk may raise
            self._open.pop(name, None)
            logger.warning("%s is left out from now on, because it failed: %s: %s. The training goes on, and log.txt "
                           "has its numbers", name, type(error).__name__, error)
            return None


def open_loggers(names: Iterable[str], folder: Path, first_epoch: int, resumed: bool) -> RunLoggers:
    """names: of LOGGERS. resumed: whether the training goes on that the folder holds; its runs go on, too."""
    names = list(names)
    run_id = "" if set(names) <= {"tensorboard"} else run_id_of(folder, resumed)  # which takes no id
    place = Place(folder, run_id, first_epoch)
    return RunLoggers({name: functools.partial(_open, name, place) for name in names})


def _open(name: str, place: Place) -> RunLogger:
    module, class_name = LOGGERS[name]
    return getattr(importlib.import_module(module), class_name)(place)


def run_id_of(folder: Path, resumed: bool) -> str:
    """The id of the training in this folder: a new one, unless that training goes on and has one. Raises UserError if
    the file is damaged or cannot be written."""
    path = folder / RUN_ID
    if resumed and path.is_file():
        run_id = path.read_text(encoding="utf-8", errors="replace").strip()
        if not (run_id.isascii() and run_id.isalnum()):
            raise UserError(f"{path} is damaged: delete it, and services show the rest of the training as a new run")
        return run_id
    run_id = secrets.token_hex(8)
    write_text(path, run_id + "\n")
    return run_id
