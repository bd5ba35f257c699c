"""What the parts of the soak share."""
import os
import random
import signal
import time

import pytest
import torch

from tools.soaking import Run, Soak, Workshop, die_at_write, differences, equal


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("soak"))


def test_entries_are_compared_to_the_last_bit():
    state = {"a": torch.tensor([1.0, float("inf")]), "b": [1, ("x", None)]}
    assert equal(state, {"a": torch.tensor([1.0, float("inf")]), "b": [1, ("x", None)]})
    for other in ({"a": torch.tensor([1.0, 2.0]), "b": state["b"]}, {"a": state["a"]}, state | {"b": [1, ("x", 0)]},
                  state | {"b": [True, ("x", None)]}, state | {"c": 1}):
        assert not equal(state, other)


def run_folder(path, lines='{"epoch": 0, "seconds": 1}\n', **entries):
    path.mkdir()
    (path / "log.txt").write_text(lines)
    torch.save({"model": {"w": torch.ones(2)}, "best": 0.5, "log": "{}"} | entries, path / "checkpoint.pth")
    return path


def test_what_two_runs_differ_in(tmp_path):
    wanted = run_folder(tmp_path / "wanted")
    assert differences(run_folder(tmp_path / "same", '{"epoch": 0, "seconds": 9}\n', log="{...}"), wanted) == []
    assert differences(run_folder(tmp_path / "best", best=0.4), wanted) == ["checkpoint.pth: best"]
    assert differences(run_folder(tmp_path / "weights", model={"w": torch.zeros(2)}), wanted) == [
        "checkpoint.pth: model"]
    assert differences(run_folder(tmp_path / "twice", '{"epoch": 0}\n{"epoch": 0}\n'), wanted) == [
        "log.txt: epochs [0, 0], not [0]"]
    assert differences(run_folder(tmp_path / "other", '{"epoch": 0, "train_loss": 1}\n'), wanted) == [
        "log.txt: other values"]
    (run_folder(tmp_path / "more") / ".log.txt.01234567").touch()
    assert "files: ['.log.txt.01234567'," in differences(tmp_path / "more", wanted)[0]


def test_a_part_counts_its_faults_and_keeps_what_they_show(workshop, capsys):
    soak = Soak("part", workshop, random.Random(0), time.monotonic() + 60)
    soak.check(True, None, "nothing")
    soak.say("something")
    assert soak.faults == 0 and soak.time_left()
    out = soak.folder / "run"
    out.mkdir()
    soak.remove(out)
    assert not out.exists()
    out.mkdir()
    soak.fault("wrong")
    soak.remove(out)
    assert soak.faults == 1 and out.exists()
    assert capsys.readouterr().out == "part: something\npart: FAULT wrong\n"


def test_a_run_that_does_not_end_is_killed(tmp_path):
    process = os.fork()
    if process == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    run = Run(process, tmp_path / "none")
    time.sleep(0.2)
    assert run.poll() is None and run.output == ""
    with pytest.raises(TimeoutError):
        run.wait(timeout=0.05)
    os.waitpid(process, 0)


def test_main_runs_in_a_fork_and_its_mistakes_are_lines(workshop):
    run = workshop.run(workshop.folder / "wrong", "--eval", "--resume", "nowhere.pth")
    assert run.code == 2 and "error: no checkpoint file nowhere.pth" in run.output and "Traceback" not in run.output


@pytest.mark.slow
def test_a_run_is_killed_at_the_write_that_was_asked_for(workshop):
    out = workshop.folder / "killed"
    run = workshop.run(out, fault=die_at_write(3, group=False))  # after the config, the arguments and one checkpoint
    assert run.code == -signal.SIGKILL
    assert (out / "checkpoint.pth").exists() and list(out.glob(".checkpoint.pth.*"))
    assert workshop.run(out).code == 0 and workshop.run(workshop.folder / "whole").code == 0
    assert differences(out, workshop.folder / "whole") == []
