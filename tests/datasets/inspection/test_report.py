"""The text of tools/inspect_dataset.py."""
import pytest

from datasets.inspection.report import classes, heading, listed_cost, listed_problems, overview, verdict
from datasets.inspection.split import inspect_split
from datasets.inspection.statistics import split_statistics
from util.options import DataOptions

DATA = DataOptions(data_aug_scales=[40, 160], data_aug_max_size=400)
COST = {"batch_size": 2, "device": "a CPU", "precision": "float32", "worst_shape": [80, 100], "most_boxes": 3,
        "limit_bytes": 4 * 2**30, "peak_bytes": 2**30, "seconds": 0.5, "worst_seconds": 0.6, "loading_seconds": 1.2,
        "epoch_seconds": 30.0, "training_seconds": 7200.0, "epochs": 12, "passes": 12.0, "levers": ["--amp"]}


@pytest.fixture
def described(root):
    return {split: split_statistics(inspect_split(root, split), DATA, 8) for split in ("train", "val")}


def test_the_head_names_data_and_sizes(described):
    text = heading({"data": "cells", "config": None, "splits": described})
    assert text.startswith("# cells\n") and "160 px" in text and "400" in text


def test_tables_have_a_column_for_each_split(described):
    assert "| images " in overview(described) and "100x80 (4)" in overview(described)
    text = classes(described)
    assert text.index("1 cat") < text.index("2 dog") and "Without any box" not in text  # most frequent first


def test_problems_show_examples_and_how_many_more():
    row = {"count": 3, "meaning": "boxes outside", "stops": True, "remedy": "left out", "examples": ["a.png"]}
    text = listed_problems({"problems": {"train": {"outside": row}}, "warnings": []})
    assert "train: 3 boxes outside" in text and "stops a training" in text and "left out" in text
    assert "a.png" in text and "and 2 more" in text
    assert "None." in listed_problems({"problems": {}, "warnings": []})


def test_the_verdict_lists_what_stops_a_training():
    assert "can use this data" in verdict([]) and "- no image" in verdict(["no image"])


def test_cost_of_a_step():
    text = listed_cost(COST)
    assert "1.0 GiB of 4.0 GiB" in text and "--num_workers 3 or more" in text and "2:00:00 h" in text
    assert "--amp" not in text  # there is room


@pytest.mark.parametrize("peak", [None, 3.5 * 2**30, 5 * 2**30])
def test_levers_are_told_where_memory_is_tight(peak):
    assert "--amp" in listed_cost(COST | {"peak_bytes": peak, "seconds": None})
