"""A detector that the sessions of the page share."""
import threading
import time

from PIL import Image
from torch import Tensor

from inference.backends import Backend
from inference.backends.torch_model import TorchBackend
from inference.page.seen import LOWEST, Seen, page_picture
from inference.predictor import Predictor
from inference.sampling import Inspected, inspect


class OneAtATime(Backend):
    """A backend that several threads may call: it works for one after the other."""

    def __init__(self, backend: Backend):
        self.backend, self.card = backend, backend.card
        self.lock = threading.Lock()

    def input_size(self, width: int, height: int) -> tuple[int, int]:
        return self.backend.input_size(width, height)

    def detect(self, images: list[Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        with self.lock:
            return self.backend.detect(images, sizes)


class SharedDetector:
    """`predictor` may be called by several threads. shows_attention: False for an exported file, which does not give
    away what is inside it."""

    def __init__(self, predictor: Predictor):
        self._inner = predictor.backend
        self._backend = OneAtATime(predictor.backend)
        predictor.backend = self._backend
        self.predictor = predictor
        self.names = predictor.class_names
        self.look(Image.new("RGB", (640, 480)), "")  # the first call is slow; and what fails must fail before a visit

    @property
    def shows_attention(self) -> bool:
        return isinstance(self._inner, TorchBackend)

    def look(self, image: Image.Image, title: str) -> Seen:
        """What is found in an RGB image."""
        start = time.perf_counter()
        if isinstance(self._inner, TorchBackend):
            with self._backend.lock:
                start = time.perf_counter()  # without the wait for others
                inspected = inspect(self._inner, image, LOWEST)
        else:
            found = self.predictor(image, score=LOWEST)
            rows = {"scores": found.scores, "labels": found.labels, "boxes": found.boxes}
            inspected = Inspected(rows, image.size, [])
        milliseconds = 1000 * (time.perf_counter() - start)
        return Seen(title, page_picture(image), inspected, self.names, milliseconds)
