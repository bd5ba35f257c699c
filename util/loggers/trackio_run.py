"""Trackio: to where `trackio show` looks, or to the Space of TRACKIO_SPACE_ID."""
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.loggers.protocol import PROJECT, Place


class TrackioLogger:
    def __init__(self, place: Place):
        import trackio

        self.trackio, self.place, self.epoch = trackio, place, place.first_epoch
        self.run: Any = None

    def config(self, values: Mapping[str, Any]) -> None:
        # It has no ids: the name is what a run is resumed by.
        self.run = self.trackio.init(project=os.environ.get("TRACKIO_PROJECT", PROJECT), resume="allow",
                                     name=f"{self.place.name}-{self.place.run_id}", config=dict(values), embed=False)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self.epoch = epoch
        self.run.log({"epoch": epoch, **values}, step=epoch)

    def text(self, name: str, markdown: str) -> None:
        self.run.log({name: self.trackio.Markdown(markdown)}, step=self.epoch)

    def picture(self, name: str, path: Path) -> None:
        self.run.log({name: self.trackio.Image(str(path), caption=name)}, step=self.epoch)

    def close(self, finished: bool) -> None:
        self.run.finish()
