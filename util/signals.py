"""Ctrl-C and SIGTERM end a training after the step in progress, and a stream of results after the one in progress."""
import signal
import time
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")


class StopRequest:
    """Remembers the first SIGINT or SIGTERM. A Ctrl-C more than two seconds later interrupts at once (launchers repeat
    the terminal's signal, so an immediate second one is ignored)."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._since, self._waiting = 0.0, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: object) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
            if self._waiting:
                raise KeyboardInterrupt
        elif number == signal.SIGINT and time.monotonic() - self._since > 2:
            raise KeyboardInterrupt

    def until(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items until a signal comes, which interrupts the wait for the next one too: a camera may never send it.
        """
        while not self.requested:
            try:
                self._waiting = True
                if self.requested:  # it came just before
                    return
                item = next(items)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._waiting = False
            yield item

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The shell's code for a process that the signal ended."""
        return 128 + int(self.signal or signal.SIGTERM)


def ignore_in_worker(worker: int) -> None:
    """Data-loader workers leave these signals to their parent process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
