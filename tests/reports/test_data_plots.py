import numpy as np

from reports.data_plots import MAX_BARS, SPLIT_COLOURS, plot_boxes
from tests.reports.pictures import count, opened


def counts(classes):
    return {"train": {f"class {i}": 100 - i for i in range(classes)}, "val": {"class 0": 7}}


LENGTHS = {"train": np.array([3.0, 40.0, 5000.0]), "val": np.array([20.0])}
PER_IMAGE = {"train": [0, 1, 4], "val": [2]}


def test_histograms_show_both_splits(tmp_path):
    plot_boxes(counts(3), LENGTHS, PER_IMAGE, 640, tmp_path / "new" / "boxes.png")
    picture = opened(tmp_path / "new" / "boxes.png")
    assert all(count(picture, colour) > 500 for colour in SPLIT_COLOURS.values())


def test_many_classes_make_the_picture_only_as_high_as_the_most_frequent_need(tmp_path):
    for classes in (MAX_BARS, 4 * MAX_BARS):
        plot_boxes(counts(classes), LENGTHS, PER_IMAGE, 640, tmp_path / f"{classes}.png")
    few, many = (opened(tmp_path / f"{classes}.png") for classes in (MAX_BARS, 4 * MAX_BARS))
    assert few.size == many.size


def test_a_set_without_boxes_is_plotted(tmp_path):
    nothing = {"train": np.zeros(0), "val": np.zeros(0)}
    plot_boxes({"train": {"a": 0}, "val": {}}, nothing, {"train": [0, 0], "val": []}, 640, tmp_path / "boxes.png")
    assert min(opened(tmp_path / "boxes.png").size) > 200
