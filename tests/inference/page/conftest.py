"""A detector with random weights, as the page uses it."""
import pytest

from inference.page.shared import SharedDetector
from inference.predictor import Predictor
from tests.inference.detectors import save_detector

BAD_NAME = "<img src=x onerror=document.title='bad'>"


@pytest.fixture(scope="package")
def detector(tiny_dino, tmp_path_factory):
    """Of four classes; one has a name that a page must not take for HTML."""
    config = tiny_dino(num_classes=4, dn_labelbook_size=4)
    names = {0: "cell", 1: BAD_NAME, 2: "plate", 3: "dust"}
    return SharedDetector(Predictor(*save_detector(config, tmp_path_factory.mktemp("page") / "model", names)))


@pytest.fixture
def handler():
    """handler(page, elem_id, event): the function that runs on an event, which returns the updates by elem_id, and
    those of the session's state as a list."""
    def find(page, elem_id, event):
        for function in page.fns.values():
            if any(page.blocks[block].elem_id == elem_id and name == event for block, name in function.targets):
                return lambda *inputs: split(function.fn(*inputs))
        raise LookupError(f"nothing happens at {event} of {elem_id}")

    def split(result):
        return ({part.elem_id: value for part, value in result.items() if part.elem_id},
                [value for part, value in result.items() if not part.elem_id])

    return find
