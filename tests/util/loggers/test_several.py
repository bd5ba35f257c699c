"""What happens around the loggers: which are there, one that fails, the id of a run."""
import importlib
import logging

import pytest

from util.errors import UserError
from util.loggers.several import DEFAULT, LOGGERS, RUN_ID, RunLoggers, check_installed, open_loggers, run_id_of


class FakeLogger:
    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == self.fails_at:
                raise OSError(28, "No space left on device")
        return call


def test_every_logger_gets_everything(tmp_path):
    first, second = FakeLogger(), FakeLogger()
    loggers = RunLoggers({"first": lambda: first, "second": lambda: second})
    loggers.config({"lr": 1})
    loggers.scalars({"train/loss": 2.0, "train/x": float("nan"), "train/y": float("inf")}, 3)
    loggers.text("summary", "text")
    loggers.picture("curves", tmp_path)
    loggers.close(True)
    assert first.calls == second.calls == [
        ("config", {"lr": 1}), ("scalars", {"train/loss": 2.0}, 3), ("text", "summary", "text"),
        ("picture", "curves", tmp_path), ("close", True)]
    loggers.close(True)
    assert len(first.calls) == 5  # closed once


@pytest.mark.parametrize("method", ["open", "config", "scalars", "text", "picture", "close"])
def test_one_that_fails_is_left_out_and_told_once(method, caplog, tmp_path):
    failing, other = FakeLogger(method), FakeLogger()

    def opener():
        if method == "open":
            raise ConnectionError("no network")
        return failing

    with caplog.at_level(logging.WARNING):
        loggers = RunLoggers({"failing": opener, "other": lambda: other})
        for epoch in range(3):
            loggers.config({})
            loggers.scalars({}, epoch)
            loggers.text("a", "b")
            loggers.picture("a", tmp_path)
        loggers.close(False)
    assert [call[0] for call in other.calls] == ["config", "scalars", "text", "picture"] * 3 + ["close"]
    assert [call[0] for call in failing.calls].count(method) == (method != "open")
    (record,) = caplog.records
    assert record.getMessage().startswith("failing is left out from now on, because it failed: ")
    assert ("no network" if method == "open" else "No space left") in record.getMessage()


def test_a_stop_of_the_program_is_none_of_a_logger():
    def opener():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        RunLoggers({"a": opener})


@pytest.mark.parametrize("name", LOGGERS)
def test_every_name_stands_for_a_class(name):
    module, class_name = LOGGERS[name]
    logger = getattr(importlib.import_module(module), class_name)
    assert all(callable(getattr(logger, method)) for method in ("config", "scalars", "text", "picture", "close"))


def test_a_missing_package_is_said(monkeypatch):
    missing = {"wandb"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    check_installed(["tensorboard", "mlflow", "trackio"])
    with pytest.raises(UserError, match="this needs wandb: pip install wandb"):
        check_installed(["tensorboard", "wandb"])
    missing = {"alembic"}
    with pytest.raises(UserError, match="this needs alembic"):
        check_installed(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")  # has its own database
    check_installed(["mlflow"])


def test_the_default_writes_to_the_folder_and_needs_no_id(tmp_path):
    loggers = open_loggers(DEFAULT, tmp_path, 0, resumed=False)
    loggers.scalars({"coco/AP": 0.5}, 0)
    loggers.close(True)
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def test_a_folder_that_refuses_is_no_end(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file")
    open_loggers(DEFAULT, tmp_path, 0, resumed=False).scalars({"a/b": 1.0}, 0)
    assert "tensorboard is left out from now on" in caplog.text


def test_the_id_of_a_run_stays_when_it_goes_on(tmp_path):
    first = run_id_of(tmp_path, resumed=False)
    assert len(first) == 16 and (tmp_path / RUN_ID).read_text() == first + "\n"
    assert run_id_of(tmp_path, resumed=True) == first
    assert run_id_of(tmp_path, resumed=False) != first
    other = tmp_path / "other"
    other.mkdir()
    assert run_id_of(other, resumed=True) not in ("", first)  # of a checkpoint that goes on in another folder


@pytest.mark.parametrize("text", ["", "a b", "' or 1=1", "../a"])
def test_a_damaged_id_is_refused(tmp_path, text):
    (tmp_path / RUN_ID).write_text(text)
    with pytest.raises(UserError, match="run_id.txt is damaged"):
        run_id_of(tmp_path, resumed=True)
