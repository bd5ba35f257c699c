"""Weights & Biases. WANDB_MODE=offline and its other environment variables hold; local files go to the run's folder."""
import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.loggers.protocol import PROJECT, Place, default_environment


class WandbLogger:
    def __init__(self, place: Place):
        import wandb

        # A network that is gone must not hold up the end of the program.
        default_environment(WANDB_FINISH_TIMEOUT="600")
        self.wandb = wandb
        self.run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), id=place.run_id, resume="allow",
                              name=os.environ.get("WANDB_NAME", place.name),
                              dir=os.environ.get("WANDB_DIR", str(place.folder)))
        # Its own steps only rise, and a resumed training may come by an epoch again.
        self.run.define_metric("*", step_metric="epoch")

    def config(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(dict(values), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self.run.log({"epoch": epoch, **values})

    def text(self, name: str, markdown: str) -> None:
        self.run.log({name: self.wandb.Html(f"<pre>{html.escape(markdown)}</pre>")})

    def picture(self, name: str, path: Path) -> None:
        self.run.log({name: self.wandb.Image(str(path))})

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)
