import argparse
from pathlib import Path

import pytest
from PIL import Image

from tools import reproduce_tables
from tools.reproduce_tables import TABLES, Cost, main, misses
from util.errors import UserError

ROWS = [row for table in TABLES for row in table.rows]


def test_every_config_of_the_family_is_a_row():
    shipped = [*Path("config/DeformableDETR").glob("*.py"), *Path("config/LiteDINO").glob("r50_*.py"),
               *Path("config/LiteDINO").glob("swint_*.py"), *Path("config/DINO").glob("baseline_*.py")]
    shipped = [path for path in shipped if not path.stem.endswith("_modern")]  # a row's detector, trained otherwise
    assert sorted(f"config/{row.config}.py" for row in ROWS) == sorted(map(str, shipped))


def test_the_committed_page_has_every_row():
    page = Path("docs/benchmarks/paper_tables.md").read_text(encoding="utf-8")
    assert [row.config for row in ROWS if f"[{row.config}](../../config/{row.config}.py)" not in page] == []
    assert "`python tools/reproduce_tables.py`" in page


@pytest.mark.parametrize("row, parameters", [("DeformableDETR/h_r50_two_stage", 47.946073),
                                             ("LiteDINO/swint_h2l2_2p1x3", 48.227256)])
def test_a_row_is_measured_written_and_drawn(tmp_path, monkeypatch, row, parameters):
    costs, measure = [], reproduce_tables.measure
    monkeypatch.setattr(reproduce_tables, "measure", lambda row: costs.append(measure(row)) or costs[-1])
    assert main(argparse.Namespace(rows=[row], out=tmp_path)) == 0
    (cost,) = costs
    table = next(table for table in TABLES if any(r.config == row for r in table.rows))
    line = next(x for x in (tmp_path / "paper_tables.md").read_text().splitlines() if f"[{row}]" in x)
    cells = [cell.strip() for cell in line.split("|")]
    assert float(cells[3]) == pytest.approx(parameters, abs=0.005)
    assert abs(cost.total / float(cells[5]) - 1) <= table.target
    assert (cells[4], cells[6]) == (f"{cost.total:.1f}", f"{100 * (cost.total / float(cells[5]) - 1):+.1f} %")
    assert Image.open(tmp_path / "paper_tables.png").width > 1000


def test_a_difference_without_an_explanation_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_tables, "measure", lambda row: Cost(40.0, 1.2 * (row.total or 100), 50.0))
    assert main(argparse.Namespace(rows=["LiteDINO/r50_h3l1_2p1x3"], out=tmp_path)) == 1
    assert "misses the target. Why is not known." in (tmp_path / "paper_tables.md").read_text()
    assert main(argparse.Namespace(rows=["DeformableDETR/lite_h2l2"], out=tmp_path)) == 0
    assert "feed-forward of the low-level tokens" in (tmp_path / "paper_tables.md").read_text()


def test_the_target_is_a_relative_difference():
    table = TABLES[0]
    row = table.rows[0]
    assert not misses(table, row, Cost(1, 1.019 * row.total, 1)) and misses(table, row, Cost(1, 0.979 * row.total, 1))
    assert not misses(table, table.rows[1], Cost(1, 1, 1))  # the paper has no figure


def test_rows_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="--rows dinno: no config"):
        main(argparse.Namespace(rows=["dinno"], out=tmp_path))
