import json
import math

import pytest

from reports.recipes import Evaluated, RunResult, compare, format_report, mean_curve, numbers, read_run
from util.errors import UserError


def run(seed, *aps, seconds=100.0, step=0.5, memory=1000.0):
    """A run that was evaluated after every epoch, each of which took as long."""
    evaluations = [Evaluated(epoch, seconds * (epoch + 1) / len(aps), ap, ap + 0.2) for epoch, ap in enumerate(aps)]
    return RunResult(seed, evaluations, step, memory, seconds)


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_a_run_is_read_from_its_log(tmp_path):
    common = {"step_seconds": 0.2, "peak_memory_mb": 700, "train_loss": 3.0}
    (tmp_path / "log.txt").write_text(lines(
        common | {"epoch": 0, "seconds": 10.0, "test_coco_eval_bbox": [0.1, 0.3, 0.2]},
        common | {"epoch": 1, "seconds": 15.0, "step_seconds": 0.9},
        common | {"epoch": 2, "seconds": 25.0, "step_seconds": 0.3, "peak_memory_mb": 800,
                  "test_coco_eval_bbox": [0.05, 0.2, 0.1]}))
    found = read_run(tmp_path, seed=4)
    assert found == RunResult(4, [Evaluated(0, 10.0, 0.1, 0.3), Evaluated(2, 25.0, 0.05, 0.2)], 0.3, 800, 25.0)
    assert (found.ap, found.ap50, found.best_ap) == (0.05, 0.2, 0.1)


@pytest.mark.parametrize("content, message", [
    (None, "holds no val AP"),
    (lines({"epoch": 0, "seconds": 1.0, "step_seconds": 1.0, "peak_memory_mb": 1}), "holds no val AP"),
    (lines({"epoch": 0, "seconds": 1.0, "test_coco_eval_bbox": [-1.0, -1.0]}), "holds no val AP: are there boxes"),
    (lines({"epoch": 0, "seconds": 1.0, "test_coco_eval_bbox": [0.5, 0.5]}), "not the log .*KeyError 'step_seconds'"),
    (lines({"epoch": 0, "seconds": 1.0, "test_coco_eval_bbox": 3}), "holds no val AP"),
])
def test_a_log_without_what_is_compared_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "log.txt").write_text(content)
    with pytest.raises(UserError, match=f"log.txt .*{message}"):
        read_run(tmp_path, 0)


def test_only_seeds_that_both_have_finished_are_paired():
    base = [run(0, 0.1, 0.30), run(1, 0.1, 0.40), run(2, 0.1, 0.9)]
    other = [run(1, 0.2, 0.45), run(0, 0.2, 0.37), run(3, 0.9, 0.9)]
    first, second, third = compare({"base": base, "other": other, "later": []})
    assert first.difference is None and third.difference is None and third.time_to_baseline is None
    assert second.difference.pairs == 2 and second.difference.mean == pytest.approx(0.06)
    assert first.mean("ap") == pytest.approx(1.6 / 3) and second.mean("ap") == pytest.approx(1.72 / 3)
    assert third.mean("ap") is None


def test_the_last_evaluation_is_compared_and_not_the_best():
    difference = compare({"base": [run(0, 0.5, 0.3)], "other": [run(0, 0.9, 0.3)]})[1].difference
    assert difference.mean == 0.0


def test_time_to_the_baselines_last_ap():
    base = [run(0, 0.1, 0.2, 0.3, 0.4), run(1, 0.1, 0.4, 0.5, 0.4)]
    fast = [run(0, 0.1, 0.5, 0.1, 0.1, seconds=200), run(1, 0.1, 0.3, 0.5, 0.5, seconds=400)]
    slow = [run(0, 0.1, 0.2, 0.3, 0.4), run(1, 0.1, 0.2, 0.3, 0.39)]
    times = [result.time_to_baseline for result in compare({"base": base, "fast": fast, "slow": slow})]
    assert times == [75.0, 150.0, math.inf]  # means of 0.4: base at its third epoch, fast at its second


def test_a_mean_curve_has_the_epochs_that_all_evaluated():
    short = RunResult(0, [Evaluated(1, 10, 0.2, 0.3), Evaluated(3, 20, 0.4, 0.5)], 1, 1, 20)
    assert mean_curve([short, run(1, 0.1, 0.4, 0.5)]) == [Evaluated(1, pytest.approx((10 + 200 / 3) / 2),
                                                                    pytest.approx(0.3), pytest.approx(0.45))]
    assert mean_curve([]) == []


def table_row(text, name):
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.split("|")]


def test_the_table():
    base = [run(seed, 0.1, 0.30 + 0.01 * seed, seconds=3600) for seed in range(5)]
    good = [run(seed, 0.5, 0.35 + 0.01 * seed + 0.001 * (seed % 2), seconds=7200, step=1, memory=2000 + seed)
            for seed in range(5)]
    results = compare({"base": base, "good": good, "new": [], "few": [run(1, 0.1, 0.30)]})
    text = format_report(results, dict.fromkeys(("base", "good", "new", "few"), "a.py"), ["a machine", "a command"])
    assert table_row(text, "base")[1:-1] == ["base", "5", "32.0", "32.0", "52.0", "-", "baseline", "0.500", "1000",
                                             "1.00", "1.00"]
    # differences 5.0, 5.1, 5.0, 5.1, 5.0 points: mean 5.04, deviation 0.0548, error 0.0245, t 2.776
    assert table_row(text, "good")[1:-1] == ["good", "5", "37.0", "50.0", "57.0", "+5.04 [+4.97, +5.11]", "better",
                                             "1.00", "2004", "2.00", "1.00"]
    assert table_row(text, "few")[6:8] == ["-1.00", "undecided: 1 of 5 seeds"] and "never" in table_row(text, "few")
    assert table_row(text, "new")[1:-1] == ["new", "0", "-", "-", "-", "-", "undecided: 0 of 5 seeds", "-", "-", "-",
                                            "-"]
    assert text.endswith("- a machine\n- a command\n")


def test_one_evaluation_a_run_has_no_time_to_an_ap():
    text = format_report(compare({"base": [run(0, 0.1)], "new": [run(0, 0.1)]}), {"base": "", "new": ""}, [])
    assert "hours to" not in text


def test_the_numbers_are_strict_json():
    content = numbers(compare({"base": [run(0, 0.5)], "one": [run(0, 0.25)], "none": []}))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["one"]["difference"] == {"pairs": 1, "mean": -0.25, "low": None, "high": None}
    assert content["one"]["time_to_baseline"] is None and content["one"]["verdict"] == "undecided: 1 of 5 seeds"
    assert content["base"]["runs"][0]["evaluations"][0]["ap"] == 0.5
    assert content["none"] == {"runs": [], "difference": None, "time_to_baseline": None, "verdict": None}
