import json

from util.metrics import LogFile, Meters


def test_means():
    meters = Meters()
    meters.update({"loss": 1.0, "lr": 5.0})
    meters.update({"loss": 3.0})
    assert meters.means() == {"loss": 2.0, "lr": 5.0}


def test_meters_go_on_from_their_state():
    first, second = Meters(), Meters()
    first.update({"loss": 1.0})
    second.load_state_dict(first.state_dict())
    second.update({"loss": 2.0})
    assert second.means() == {"loss": 1.5} and first.means() == {"loss": 1.0}


def test_log_removes_the_line_a_killed_run_left(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text('{"epoch": 0}\n{"epoch": 1, "train_lo')
    LogFile(path).append({"epoch": 1, "train_loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"epoch": 0}, {"epoch": 1, "train_loss": 0.5}]


def test_log_writes_non_finite_numbers_as_null(tmp_path):
    LogFile(tmp_path / "log.txt").append({"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert json.loads((tmp_path / "log.txt").read_text()) == {"a": None, "b": None, "c": 1.0}
