import logging
from pathlib import Path

import pytest

from util.logger import Progress, setup_logging


def test_main_process_logs_to_console_and_file_the_others_warn_only(tmp_path, capsys):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        setup_logging(0, tmp_path)
        logging.getLogger("x").info("hello %d", 3)
        assert "hello 3" in capsys.readouterr().out
        assert "INFO x: hello 3" in (tmp_path / "info.txt").read_text()
        setup_logging(1)
        logging.getLogger("x").info("quiet")
        logging.getLogger("x").warning("loud")
        out = capsys.readouterr().out
        assert "quiet" not in out and "warning: loud" in out
    finally:
        root.handlers[:], root.level = handlers, level


def test_a_disk_that_refuses_the_log_is_said_once(tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    (tmp_path / "info.txt").symlink_to("/dev/full")
    try:
        setup_logging(0, tmp_path)
        for i in range(3):
            logging.getLogger("x").info("line %d", i)
        out, err = capsys.readouterr()
    finally:
        root.handlers[:], root.level = handlers, level
    assert "line 2" in out and out.count("cannot write") == 1 and "info.txt any more: " in out
    assert err == ""


def test_progress_without_a_terminal_prints_lines_with_eta(caplog):
    progress = Progress("epoch 3", total=7, done=2, every=3)
    with caplog.at_level("INFO"):
        seen = []
        for item in progress(range(5)):
            seen.append(item)
            progress.show(f"loss {item}")
    assert seen == list(range(5))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and lines[0].startswith("epoch 3 [3/7] eta 0:00:0") and lines[-1].startswith("epoch 3 [7/7]")
    assert lines[-1].endswith("loss 4")


def test_quiet_progress_prints_nothing(caplog):
    with caplog.at_level("INFO"):
        assert list(Progress("x", 3, every=1, quiet=True)(range(3))) == [0, 1, 2]
    assert not caplog.records
