"""Pictures on their way to a detector, and those that could not be read."""
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from PIL import Image

logger = logging.getLogger(__name__)
MOST_NAMED = 20  # of what was skipped; the rest is counted
Item = TypeVar("Item")


@dataclass(frozen=True)
class Frame:
    """image: RGB, upright. path: of its file or address, "" for an image in memory. number: its place in a video or
    camera, from 0, and time: seconds since the first; None for an image."""

    image: Image.Image
    path: str = ""
    number: int | None = None
    time: float | None = None


@dataclass
class Skipped:
    """What could not be read. report: is called with a message for each of the first MOST_NAMED."""

    report: Callable[[str], None] = logger.warning
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, name: str, message: str) -> None:
        self.count += 1
        if self.count <= MOST_NAMED:
            self.named.append(name)
            self.report(message)

    def __str__(self) -> str:
        more = self.count - len(self.named)
        return ", ".join(self.named) + (f" and {more} more" if more else "")


_END: Any = object()


def prefetched(items: Iterator[Item], most: int, newest: bool = False) -> Iterator[Item]:
    """The items, which a thread computes ahead: at most `most` of them wait.

    newest: of a live source, only the latest one waits, and those that came while the reader was busy are left out. An
    exception in the thread is raised here.
    """
    waiting: queue.Queue[tuple[Item, BaseException | None]] = queue.Queue(1 if newest else most)
    stop = threading.Event()

    def put(entry: tuple[Item, BaseException | None], wait: bool) -> None:
        while not stop.is_set():
            try:
                return waiting.put(entry, timeout=0.1 if wait else 0)
            except queue.Full:
                if not wait:
                    try:
                        waiting.get_nowait()
                    except queue.Empty:
                        pass

    def work() -> None:
        try:
            for item in items:
                put((item, None), wait=not newest)
                if stop.is_set():
                    return
            put((_END, None), wait=True)
        except BaseException as error:  # noqa: BLE001 - it is raised where the items are read
            put((_END, error), wait=True)

    thread = threading.Thread(target=work, name="reads ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
