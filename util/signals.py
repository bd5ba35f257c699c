"""Ctrl-C and SIGTERM end a training after the step in progress."""
import signal
import time


class StopRequest:
    """Remembers the first SIGINT or SIGTERM. A Ctrl-C more than two seconds later interrupts at once (launchers repeat
    the terminal's signal, so an immediate second one is ignored)."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._since = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: object) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > 2:
            raise KeyboardInterrupt

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
