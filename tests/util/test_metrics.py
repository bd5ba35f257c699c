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


def test_a_line_takes_the_place_of_its_epoch_and_of_later_ones(tmp_path):
    log = LogFile(tmp_path / "log.txt")
    for epoch in (0, 1, 2, 3):
        log.append({"epoch": epoch, "try": 1})
    LogFile(tmp_path / "log.txt").append({"epoch": 2, "try": 2})
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["try"]) for line in lines] == [(0, 1), (1, 1), (2, 2)]


def test_records_by_epoch(tmp_path):
    log = LogFile(tmp_path / "log.txt")
    assert log.epochs() == {}
    for record in ({"epoch": 0, "a": 1}, {"a": 2}, {"epoch": 11, "a": 3}):
        log.append(record)
    with log.path.open("a") as file:
        file.write('{"epoch": 12, "a')
    assert log.epochs() == {0: {"epoch": 0, "a": 1}, 11: {"epoch": 11, "a": 3}}


def test_records_without_an_epoch_are_all_kept(tmp_path):
    for _ in range(3):
        LogFile(tmp_path / "log.txt").append({"resume": "a.pth"})
    assert (tmp_path / "log.txt").read_text() == '{"resume": "a.pth"}\n' * 3
