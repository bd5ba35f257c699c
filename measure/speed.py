"""How fast a detector is."""
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from measure.clock import wait_for

SECONDS = 4.0  # for which a speed is measured


@dataclass
class Speed:
    """Of batches of `batch` images. seconds: of each, in ascending order."""

    batch: int
    seconds: list[float]

    @property
    def fps(self) -> float:
        """Images per second."""
        return self.batch * len(self.seconds) / sum(self.seconds)

    def percentile(self, percent: int) -> float:
        """Milliseconds in which `percent` of the batches were done."""
        if len(self.seconds) == 1:
            return 1e3 * self.seconds[0]
        return 1e3 * statistics.quantiles(self.seconds, n=100, method="inclusive")[percent - 1]


@torch.inference_mode()
def measure_speed(detect: Callable[[list[Tensor]], object], images: list[Tensor], batch: int, device: torch.device,
                  seconds: float | None = None) -> Speed:
    """Times at least 3 calls of `detect` on batches of `images` (cycled), for about `seconds`, after one to
    warm up. SECONDS is the default.
    """
    def run(first: int) -> float:
        inputs = [images[(first + i) % len(images)].to(device) for i in range(batch)]
        wait_for(device)
        start = time.perf_counter()
        detect(inputs)
        wait_for(device)
        return time.perf_counter() - start

    run(0)
    times: list[float] = []
    while len(times) < 3 or sum(times) < (SECONDS if seconds is None else seconds):
        times.append(run(len(times) * batch))
    return Speed(batch, sorted(times))
