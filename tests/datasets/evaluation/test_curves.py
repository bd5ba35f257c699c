import numpy as np
import pytest

from datasets.evaluation.curves import CLASS_STATS, IOUS, STATS, Curves, mean_measured, stats_table


def curves():
    """Two classes, the second without ground truth; precision and recall say where they are from."""
    precision = np.full((10, 101, 2, 4), -1.0)
    precision[:, :, 0] = np.arange(10)[:, None, None] / 10 + np.arange(4) / 100
    recall = np.full((10, 2, 4, 3), -1.0)
    recall[:, 0] = np.arange(4)[:, None] / 10 + np.arange(3) / 100
    return Curves(precision, recall)


def test_each_number_is_of_its_part():
    numbers = dict(zip(STATS, curves().stats(), strict=True))
    assert numbers == pytest.approx({
        "AP": 0.45, "AP50": 0, "AP75": 0.5, "APs": 0.46, "APm": 0.47, "APl": 0.48,
        "AR1": 0, "AR10": 0.01, "AR100": 0.02, "ARs": 0.12, "ARm": 0.22, "ARl": 0.32})
    assert curves().class_stats(0) == pytest.approx({name: numbers[name] for name in CLASS_STATS})
    assert curves().class_stats(1) == dict.fromkeys(CLASS_STATS)
    assert IOUS[0] == 0.5 and IOUS[5] == 0.75 and IOUS[-1] == 0.95


def test_what_cannot_be_measured_has_no_part_in_a_mean():
    assert mean_measured(np.array([-1, 0.2, 0.4, -1])) == pytest.approx(0.3)
    assert mean_measured(np.array([-1.0])) is None and mean_measured(np.zeros(0)) is None
    assert Curves(np.full((10, 101, 1, 4), -1.0), np.full((10, 1, 4, 3), -1.0)).stats() == (-1,) * 12


def test_the_table_names_its_limits():
    lines = stats_table(range(12), (1, 10, 300)).splitlines()
    assert lines[0] == " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=300 ] = 0.000"
    assert lines[1] == " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=300 ] = 1.000"
    assert [line.split("maxDets=")[1][:3].strip() for line in lines[6:9]] == ["1", "10", "300"]
    assert lines[11] == " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=300 ] = 11.000"
