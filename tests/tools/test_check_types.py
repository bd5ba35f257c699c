import pytest

from tools import check_types
from tools.check_types import verdict

OLD = "models/dino.py:3: error: Item has no attribute  [union-attr]"
NEW = "util/files.py:3: error: Incompatible types  [assignment]"


@pytest.mark.parametrize("errors, code", [([], 0), ([OLD], 0), ([OLD, OLD], 1), ([NEW], 1), ([OLD, NEW], 1)])
def test_clean_rooms_stay_clean_and_the_number_elsewhere_may_only_fall(errors, code, monkeypatch):
    monkeypatch.setattr(check_types, "RECORDED", 1)
    assert verdict(errors) == code


def test_a_lower_number_asks_to_be_recorded(monkeypatch, capsys):
    monkeypatch.setattr(check_types, "RECORDED", 3)
    assert verdict([OLD]) == 0
    assert "set RECORDED in tools/check_types.py to 1" in capsys.readouterr().out
