import json
from dataclasses import replace

import pytest

from datasets.coco_eval import summarize
from tools.benchmark_evaluation import differences, main, parse_args, random_data
from util.errors import UserError

SMALL = ["--images", "12", "--detections", "20", "--classes", "3"]


def test_measures_every_evaluator(tmp_path, capsys):
    main(parse_args([*SMALL, "--json", str(tmp_path / "evaluation.json")]))
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert [record["evaluator"] for record in result["evaluators"]] == ["hotcoco", "faster_coco_eval", "pycocotools"]
    assert all(record["seconds"] > 0 and record["difference"] < 1e-9 for record in result["evaluators"])
    assert len({round(record["AP"], 9) for record in result["evaluators"]}) == 1
    assert "12 images, 20 detections in each, 3 classes" in capsys.readouterr().out


def test_without_the_judge_there_is_no_difference(capsys):
    main(parse_args([*SMALL, "--evaluators", "hotcoco"]))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| hotcoco"))
    assert line.split("|")[-2].strip() == "-"


def test_the_data_has_the_size_that_was_asked_for():
    coco, detections = random_data(12, 20, 3)
    assert len(coco.imgs) == 12 and len(coco.cats) == 3 and len(coco.anns) == 86
    assert [len(rows) for rows in detections.values()] == [20] * 12
    assert 0.05 < summarize(coco, detections).stats[0] < 0.9
    again = random_data(12, 20, 3)
    assert again[1] == detections and again[0].anns == coco.anns


def test_a_difference_anywhere_is_seen():
    summary = summarize(*random_data(12, 20, 3))
    assert differences(summary, summary) == 0
    assert differences(replace(summary, stats=(0.5, *summary.stats[1:])), summary) == abs(0.5 - summary.stats[0])
    precision = summary.precision | {0.9: summary.precision[0.9] + 0.25}
    assert differences(replace(summary, precision=precision), summary) == pytest.approx(0.25)
    score = replace(summary.classes[1], stats=summary.classes[1].stats | {"AP75": None})
    assert differences(replace(summary, classes=summary.classes | {1: score}), summary) == 1


@pytest.mark.parametrize("flag", ["--images", "--detections", "--classes", "--repeat"])
def test_refuses_a_size_below_1(flag):
    with pytest.raises(UserError, match="at least 1"):
        main(parse_args([flag, "0"]))
