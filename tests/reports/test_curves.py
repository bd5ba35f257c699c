import json

import numpy as np
import pytest

from reports.curves import METRICS, plot_log, read_log
from tests.reports.pictures import count, opened
from util.errors import UserError


def record(epoch, **values):
    return {"epoch": epoch, "train_lr": 1e-4, "train_loss": 10.0 - epoch, **values}


def evaluated(epoch, ap):
    return record(epoch, test_loss=12.0 - epoch, test_coco_eval_bbox=[ap, ap * 1.5, ap * 1.1] + [ap] * 9)


def halves(path):
    pixels = np.asarray(opened(path))
    return np.split(pixels, [pixels.shape[1] // 2], axis=1)


def test_log_is_read_in_order_and_the_later_line_of_an_epoch_counts(tmp_path):
    path = tmp_path / "log.txt"
    records = [record(1, run="first"), record(2), record(0), record(1, run="resumed")]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert read_log(path) == [records[2], records[3], records[1]]


@pytest.mark.parametrize("rest", ['{"epoch": 1, "train_lo', '{"epoch": 1, "train_lo\n', "\n\n", ""])
def test_log_of_a_killed_run(tmp_path, rest):
    path = tmp_path / "log.txt"
    path.write_text(json.dumps(record(0)) + "\n" + rest)
    assert read_log(path) == [record(0)]


@pytest.mark.parametrize("line", ['{"epoch": 1, "train_lo', "3", '{"train_loss": 3.0}'])
def test_bad_line_inside_a_log_is_named(tmp_path, line):
    path = tmp_path / "log.txt"
    path.write_text("\n".join([json.dumps(record(0)), line, json.dumps(record(2))]))
    with pytest.raises(ValueError, match=r"log\.txt, line 2"):
        read_log(path)


def test_missing_log_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training log at .*log.txt"):
        read_log(tmp_path / "log.txt")


def test_empty_log_reads_as_no_record_and_is_not_plotted(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("")
    assert read_log(path) == []
    with pytest.raises(UserError, match="no finished epoch"):
        plot_log(path, tmp_path / "log.png")
    assert not (tmp_path / "log.png").exists()


def test_plot_has_losses_left_and_metrics_right(tmp_path):
    log = [evaluated(epoch, ap=0.1 * epoch) if epoch % 2 else record(epoch) for epoch in range(6)]
    path = tmp_path / "new" / "log.png"
    plot_log(log, path)
    left, right = halves(path)
    assert all(count(right, colour) > 200 for colour in METRICS.values())
    assert count(left, "#2563eb") > 200 and count(left, "#ea580c") > 200
    assert [file.name for file in path.parent.iterdir()] == ["log.png"]


def test_plot_reads_a_path(tmp_path):
    log = [evaluated(0, 0.2), evaluated(1, 0.3)]
    (tmp_path / "log.txt").write_text("\n".join(map(json.dumps, log)))
    plot_log(tmp_path / "log.txt", tmp_path / "from_path.png")
    plot_log(log, tmp_path / "from_list.png")
    assert opened(tmp_path / "from_path.png").tobytes() == opened(tmp_path / "from_list.png").tobytes()


def test_plot_of_one_epoch_shows_its_points(tmp_path):
    plot_log([evaluated(0, 0.2)], tmp_path / "log.png")
    left, right = halves(tmp_path / "log.png")
    centre = slice(left.shape[1] // 3, 3 * left.shape[1] // 4)  # away from legends and numbers
    assert count(left[:, centre], "#2563eb") > 10 and count(left[:, centre], "#ea580c") > 10
    assert all(count(right[:, centre], colour) > 10 for colour in METRICS.values())


@pytest.mark.parametrize("log", [[record(0), record(1)], [record(0, test_coco_eval_bbox=[-1.0] * 12), record(1)]])
def test_plot_without_average_precision_has_only_the_loss(tmp_path, log):
    plot_log(log, tmp_path / "log.png")
    left, right = halves(tmp_path / "log.png")
    assert count(left, "#2563eb") > 200 and count(left, "#ea580c") == 0
    assert not any(count(right, colour) for colour in METRICS.values())
