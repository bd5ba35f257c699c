"""Console and file logging of the main process, and progress of a loop."""
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from termcolor import colored
from tqdm import tqdm

logger = logging.getLogger(__name__)


class _ConsoleFormatter(logging.Formatter):
    COLOURS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}

    def format(self, record: logging.LogRecord) -> str:
        stamp = colored(self.formatTime(record, "%H:%M:%S"), "green")
        message = record.getMessage()
        if record.levelno in self.COLOURS:
            message = colored(f"{record.levelname.lower()}: {message}", self.COLOURS[record.levelno])
        return f"{stamp} {message}"


class _TqdmHandler(logging.StreamHandler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


class _InfoFile(logging.FileHandler):
    """Once the disk refuses a line, the console alone has the log: each further line would be a traceback there."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        logger.warning("cannot write %s any more: %s", self.baseFilename, sys.exc_info()[1])


def setup_logging(rank: int, folder: Path | None = None) -> None:
    """Rank 0 logs to the console and appends to folder/info.txt; the others only print warnings."""
    root = logging.getLogger()
    root.handlers.clear()
    console = _TqdmHandler()
    console.setFormatter(_ConsoleFormatter())
    console.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    root.addHandler(console)
    root.setLevel(logging.INFO)
    if rank == 0 and folder is not None:
        file = _InfoFile(folder / "info.txt", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)


class Progress:
    """Iterates with a progress bar on a terminal, or with a log line every `every` steps elsewhere."""

    def __init__(self, title: str, total: int, done: int = 0, every: int = 20, quiet: bool = False):
        self.title, self.total, self.done, self.every = title, total, done, every
        self.quiet = quiet
        self.text = ""

    def show(self, text: str) -> None:
        """Sets the text that is printed with the progress."""
        self.text = text

    def __call__(self, batches: Iterable) -> Iterator:
        if self.quiet:
            yield from batches
        elif sys.stderr.isatty():
            yield from self._bar(batches)
        else:
            yield from self._lines(batches)

    def _bar(self, batches: Iterable) -> Iterator:
        with tqdm(batches, self.title, self.total, initial=self.done, dynamic_ncols=True, leave=False) as bar:
            for batch in bar:
                yield batch
                bar.set_postfix_str(self.text, refresh=False)

    def _lines(self, batches: Iterable) -> Iterator:
        start = time.perf_counter()
        for i, batch in enumerate(batches, 1):
            yield batch
            done = self.done + i
            if done % self.every == 0 or done == self.total:
                pace = (time.perf_counter() - start) / i
                left = timedelta(seconds=round(pace * (self.total - done)))
                logger.info("%s [%d/%d] eta %s, %.3f s/step %s", self.title, done, self.total, left, pace, self.text)
