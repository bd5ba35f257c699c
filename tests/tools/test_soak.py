"""The order and the time of the parts."""
import time

import pytest

from tools import soak


@pytest.fixture
def parts(monkeypatch):
    """Two parts that do nothing but note what they were given; the second finds a fault."""
    given = []

    class Workshop:
        def __init__(self, folder):
            self.folder, self.start, self.run = folder, None, None

    def sound(part):
        given.append((part.name, part.kills, part.end - time.monotonic(), part.random.random()))

    def broken(part):
        sound(part)
        part.fault("wrong")

    monkeypatch.setattr(soak, "Workshop", Workshop)
    monkeypatch.setattr(soak, "PARTS", {"a": sound, "b": broken})
    return given


def test_parts_share_the_time_and_a_fault_is_the_exit_code(parts, tmp_path, capsys):
    args = soak.parse_args(["--minutes", "1", "--kills", "3", "--keep", str(tmp_path / "kept")])
    assert soak.main(args) == 1
    assert [(name, kills) for name, kills, *_ in parts] == [("a", 3), ("b", 3)]
    assert parts[0][2] == pytest.approx(30, abs=2) and parts[1][2] == pytest.approx(60, abs=2)
    assert parts[0][3] == parts[1][3]  # the seed alone decides
    assert (tmp_path / "kept" / "b").is_dir()
    assert capsys.readouterr().out == "b: FAULT wrong\n1 faults\n"


def test_some_parts_alone(parts):
    args = soak.parse_args(["a"])
    assert soak.main(args) == 0 and [name for name, *_ in parts] == ["a"]


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        soak.parse_args(["sea"])
    assert "sea" in capsys.readouterr().err
