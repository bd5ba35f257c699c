"""That every plot is written and shows what it should, for few and many classes."""
import numpy as np
import pytest
from PIL import Image, ImageColor

from reports.plots import MAX_SIDE, plot_confusion_matrix, plot_errors, plot_precision_recall

AWKWARD = ["a$b$ \\frac{", "_hidden", "a name that is far too long to be written out"]
BLUE, GREY = "#2563eb", "#737373"


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def count(path, colour):
    return int((pixels(path) == np.array(ImageColor.getrgb(colour))).all(-1).sum())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "plot.png"


@pytest.mark.parametrize("classes", [3, 40])
def test_a_curve_for_every_class_that_was_measured(path, classes):
    precision = np.linspace(1, 0, 101)[:, None] * np.linspace(0.4, 1, classes)
    names = (AWKWARD * classes)[:classes]
    plot_precision_recall({"IoU 0.5": precision, "IoU 0.75": precision / 2}, names, path)
    colour = "#1f77b4" if classes == 3 else "#93b4e8"
    assert count(path, colour) > 100 and count(path, "#111111") > 100
    precision[:, 0] = -1
    before = pixels(path)
    plot_precision_recall({"IoU 0.5": precision, "IoU 0.75": precision / 2}, names, path)
    assert (pixels(path) != before).any() and (count(path, colour) == 0) == (classes == 3)


def test_nothing_measured_leaves_no_curve(path):
    plot_precision_recall({"IoU 0.5": np.full((101, 3), -1.0)}, AWKWARD, path)
    assert count(path, "#111111") < 50  # some pixels of the letters have the colour too


@pytest.mark.parametrize("classes", [1, 3, 130])
def test_confusion_matrix_of_any_size(path, classes):
    matrix = np.zeros((classes + 1, classes + 1), int)
    matrix[range(classes), range(classes)] = 7
    plot_confusion_matrix(matrix, (AWKWARD * classes)[:classes], "title", path)
    with Image.open(path) as picture:
        assert max(picture.size) <= 130 * (MAX_SIDE + 1)
    assert count(path, "#08306b") > 100  # the diagonal, 100 %
    assert count(path, "#f1f1f1") > 100  # the background row: nothing was detected there


def test_an_error_has_a_bar_as_long_as_its_cost(path):
    plot_errors({"a": 0.1, "b": 0.2}, {"c": 0.05}, path)
    columns = (pixels(path) == np.array(ImageColor.getrgb(BLUE))).all(-1).any(0).sum()
    grey = (pixels(path) == np.array(ImageColor.getrgb(GREY))).all(-1).sum(1).max()
    assert 3.8 < columns / grey < 4.2


def test_unknown_costs_have_no_bar(path):
    plot_errors({"a": None, "b": 0.0}, {"c": None}, path)
    assert count(path, BLUE) == 0 and count(path, GREY) < 50  # some pixels of the letters are grey
