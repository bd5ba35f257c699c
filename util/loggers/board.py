"""TensorBoard: event files in the run's folder."""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from util.loggers.protocol import Place


class BoardLogger:
    def __init__(self, place: Place):
        self.epoch = place.first_epoch
        self.writer = SummaryWriter(str(place.folder / "tensorboard"), purge_step=place.first_epoch)

    def config(self, values: Mapping[str, Any]) -> None:
        self.text("config", f"```json\n{json.dumps(dict(values), indent=1, default=str)}\n```")

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self.epoch = epoch
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def text(self, name: str, markdown: str) -> None:
        self.writer.add_text(name, markdown, self.epoch)

    def picture(self, name: str, path: Path) -> None:
        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), self.epoch, dataformats="HWC")

    def close(self, finished: bool) -> None:
        self.writer.close()
