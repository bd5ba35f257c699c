import json
from pathlib import Path

import pytest

from tools import benchmark_data
from tools.benchmark_data import COLUMNS, get_args_parser, main, start, write_set
from tools.common import ROOT
from util.errors import UserError


def test_the_set_has_the_numbers_that_were_asked_for(tmp_path):
    write_set(tmp_path / "set", images=30, boxes=50)
    content = json.loads((tmp_path / "set/annotations/instances_train2017.json").read_text())
    assert (len(content["images"]), len(content["annotations"]), len(content["categories"])) == (30, 50, 90)
    assert sorted(path.name for path in (tmp_path / "set/train2017").iterdir()) == [
        image["file_name"] for image in content["images"]]
    assert {a["image_id"] for a in content["annotations"]} <= set(range(1, 31))
    assert all(12 <= len(a["segmentation"][0]) <= 72 for a in content["annotations"])


def test_each_start_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_data, "IMAGES", 30)
    monkeypatch.setattr(benchmark_data, "BOXES", 25)
    args = get_args_parser().parse_args(["start", str(tmp_path), "--starts", "2", "--times", "2"])
    assert main(args) == 0
    printed = capsys.readouterr().out
    assert "30 images, 50 boxes" in printed and "| first" in printed and "| later" in printed
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert len(found) == 2 and all(row.keys() == set(COLUMNS) for row in found)
    assert all(row["seconds"] > row["imports_seconds"] > 0 and row["peak_mb"] >= row["kept_mb"] > 100 for row in found)


@pytest.mark.slow
def test_processes_that_start_together_are_measured_each(tmp_path):
    write_set(tmp_path / "set", images=20, boxes=20)
    assert len(start(ROOT, tmp_path / "set", tmp_path / "cache", processes=2)) == 2


def test_what_cannot_be_measured_is_told(tmp_path):
    with pytest.raises(UserError, match="start needs a FOLDER"):
        main(get_args_parser().parse_args(["start"]))
    with pytest.raises(UserError, match="exit code"):
        start(ROOT, tmp_path / "nowhere", Path(tmp_path), processes=1)
