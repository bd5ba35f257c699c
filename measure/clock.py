"""Where the time of a program goes: seconds and operator calls of each of its parts."""
import functools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default}


class Clock:
    """Seconds in each part of the work. A part that runs within another counts only for itself, and the device finishes
    a part before the next begins."""

    REST = "rest"

    def __init__(self, device: torch.device):
        self.device = device
        self.spent: dict[str, float] = defaultdict(float)
        self.open, self.since = [self.REST], time.perf_counter()

    def switch(self) -> None:
        """What was done since the last call belongs to the innermost part."""
        wait_for(self.device)
        now = time.perf_counter()
        self.spent[self.open[-1]] += now - self.since
        self.since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.switch()
        self.open.append(name)
        yield
        self.switch()
        self.open.pop()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Makes the calls of a function or method count as a part, until this process ends."""
        call = getattr(owner, attribute)

        @functools.wraps(call)
        def timed(*args, **kwargs):
            with self.part(name):
                return call(*args, **kwargs)

        setattr(owner, attribute, timed)


class CallCounter(TorchDispatchMode):
    """Calls of torch's operators by the clock's current part. Views, which compute nothing, do not count."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.clock = clock
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not (function.is_view or function in VIEWS):
            self.calls[self.clock.open[-1]] += 1
        return function(*args, **(kwargs or {}))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
