import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from recipe_file import read_recipes
from recipe_runs import RecipeRun, Slots, plan, run_all
from util.config import load_config
from util.errors import UserError
from util.signals import StopRequest

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture
def stop():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield StopRequest()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def planned(tmp_path, config_file):
    """planned(text, seeds): the runs of such a file."""
    def planned(text, seeds=1):
        (tmp_path / "r.yaml").write_text(text)
        return plan(read_recipes(tmp_path / "r.yaml", str(config_file)), seeds, tmp_path / "out", ["--device", "cpu"])
    return planned


@pytest.fixture
def run(stop):
    """run(runs): what ended, by title."""
    def run(runs, parallel=1):
        ended = {}
        run_all(runs, Slots(parallel), STAND_IN, stop, lambda run, failure: ended.update({run.title: failure}))
        return ended
    return run


def notes(folder):
    return [json.loads(line) for line in (folder / "starts.json").read_text().splitlines()]


def test_seed_by_seed_over_all_recipes(planned):
    assert [run.title for run in planned("a: {}\nb: {}", 2)] == ["a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]
    run = planned("a: {}\nb: {lr: 1e-3}", 2)[3]
    assert run.folder.parts[-3:] == ("out", "b", "seed_1")
    assert run.arguments()[2:] == ["--seed", "1", "--output_dir", str(run.folder), "--resume", "auto", "--num_workers",
                                   "0", "--device", "cpu", "--options", "lr=1e-3"]


def test_runs_end_with_what_they_were_made_with(planned, run, tmp_path):
    runs = planned("a: {}\nb: {lr: 0.2}", 2)
    assert not any(r.finished for r in runs)
    assert run(runs) == dict.fromkeys(["a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"])
    assert all(r.finished for r in planned("a: {}\nb: {lr: 2e-1}", 2))
    assert runs[0].circumstances() == {"processors": len(os.sched_getaffinity(0)), "version": "abc"}
    assert [n["run"] for n in notes(tmp_path / "out") if "epoch" in n] == ["a 0", "b 0", "a 1", "b 1"]
    assert (runs[0].folder / "output.txt").read_text() == "these are the last words\n"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_runs_at_a_time_have_their_share_of_the_processors(planned, run, tmp_path):
    before, at_once = os.sched_getaffinity(0), []

    def let_go():
        """Ends the waiting of the first when the second has started, or when it does not."""
        started, count = tmp_path / "out/starts.json", 0
        for _ in range(6000):
            count = started.read_text().count("epoch") if started.exists() else 0
            if count == 2:
                break
            time.sleep(0.01)
        at_once.append(count)
        (tmp_path / "out/go").touch()

    thread = threading.Thread(target=let_go)
    thread.start()
    run(planned("a: {grad_accum_steps: 2}\nb: {grad_accum_steps: 2}", 2), parallel=2)
    thread.join()
    share, starts = len(before) // 2, [n for n in notes(tmp_path / "out") if "epoch" in n]
    assert {tuple(n["processors"]) for n in starts} == {tuple(sorted(before)[:share]),
                                                       tuple(sorted(before)[share:2 * share])}
    assert {(n["threads"], n["wait"]) for n in starts} == {(str(share), "passive")}
    assert at_once == [2]  # the second did not wait for the first
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_no_more_runs_than_processors(count):
    with pytest.raises(UserError, match="--parallel must be from 1 to"):
        Slots(count)


def test_a_failing_run_is_told_with_its_last_words_and_the_others_go_on(planned, run):
    ended = run(planned("a: {}\nb: {weight_decay: 1.0}\nc: {}"))
    assert ended["a, seed 0"] is ended["c, seed 0"] is None
    assert ended["b, seed 0"].startswith("exit code 3; the end of ")
    assert ended["b, seed 0"].endswith("output.txt:\nthese are the last words")
    assert not planned("a: {}\nb: {weight_decay: 1.0}")[1].finished


def test_a_stop_reaches_the_runs_which_go_on_where_they_were(planned, run, stop, tmp_path):
    runs = planned("a: {grad_accum_steps: 2}\nb: {}")

    def ask():
        while not (runs[0].folder / "log.txt").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    assert run(runs) == {} and stop.requested
    thread.join()
    assert (runs[0].folder / "checkpoint.pth").read_text() == "1" and not runs[1].folder.exists()
    stop.signal = None
    (tmp_path / "out/go").touch()
    assert run(runs) == {"a, seed 0": None, "b, seed 0": None}
    assert [n["epoch"] for n in notes(tmp_path / "out") if "epoch" in n] == [0, 1, 0]


def test_no_process_is_left_when_something_breaks(planned, stop, tmp_path):
    runs = planned("a: {grad_accum_steps: 2}\nb: {weight_decay: 1.0}")

    def ended(run, failure):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        run_all(runs[::-1], Slots(min(2, len(os.sched_getaffinity(0)))), STAND_IN, stop, ended)
    with (runs[0].folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process would hold it


def test_a_folder_in_which_a_process_still_trains_is_left_alone(planned, run):
    runs = planned("a: {}\nb: {}")
    runs[0].folder.mkdir(parents=True)
    with (runs[0].folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = run(runs)
    assert "seed_0: a process still trains there" in ended["a, seed 0"] and ended["b, seed 0"] is None
    assert run(runs[:1]) == {"a, seed 0": None}


def test_a_run_with_other_options_is_refused(planned, run, config_file, tmp_path):
    runs = planned("a: {}\nb: {lr: 0.2}")
    run(runs)
    with pytest.raises(UserError, match=r"b/seed_0 holds a run that was made otherwise \(lr 0.2, not 0.3\): choose"):
        planned("a: {}\nb: {lr: 0.3}")[1].recorded()
    other = RecipeRun(runs[0].recipe, 0, runs[0].folder, ("--device", "cpu", "--amp"))
    with pytest.raises(UserError, match=r"flags '--device cpu', not '--device cpu --amp'"):
        other.recorded()
    with pytest.raises(UserError, match="seed 0, not 1"):
        RecipeRun(runs[0].recipe, 1, runs[0].folder, runs[0].flags).recorded()
    load_config(runs[0].folder / "config.py", {"dropout": 0.25}).dump(runs[0].folder / "config.py")
    with pytest.raises(UserError, match=r"a/seed_0/config.py says .* other options \(dropout 0.25, not 0.0\)"):
        runs[0].recorded()


def test_a_run_of_an_earlier_version_counts(planned, run):
    """A config key that it does not know had the effect of its default."""
    runs = planned("a: {aug_phases: {mosaic: [0.1, 0.4]}}\nb: {}")
    assert run(runs) == {"a, seed 0": None, "b, seed 0": None}
    for one in runs:
        record = json.loads((one.folder / "recipe.json").read_text())
        del record["options"]["class_cost"], record["options"]["data_aug_mosaic"]
        (one.folder / "recipe.json").write_text(json.dumps(record))
        assert one.finished
    with pytest.raises(UserError, match="data_aug_mosaic 0.0, not 0.5"):
        planned("a: {}\nb: {data_aug_mosaic: 0.5}")[1].recorded()
    record["options"]["of_tomorrow"] = 1
    (one.folder / "recipe.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="b/seed_0 holds a run of another version .*'of_tomorrow'"):
        one.recorded()


def test_a_training_of_another_program_is_refused(planned):
    first = planned("a: {}\nb: {}")[0]
    first.folder.mkdir(parents=True)
    assert first.recorded() == {}  # nothing to lose
    (first.folder / "log.txt").touch()
    for content in (None, "[", "3", "{}"):
        if content:
            (first.folder / "recipe.json").write_text(content)
        with pytest.raises(UserError, match="seed_0 holds a training without a recipe.json of this program"):
            first.recorded()


def test_what_the_data_decide_is_no_other_option(planned, run):
    runs = planned("a: {num_classes: auto, image_size: 64, data_aug_scales: [480, 512, 544, 576, 608, 640, 672, 704, "
                   "736, 768, 800], data_aug_max_size: 1333, data_aug_scales2_resize: [400, 500, 600], "
                   "data_aug_scales2_crop: [384, 600]}\nb: {}")
    run(runs)
    made = load_config(runs[0].folder / "config.py", {"num_classes": 5, "image_size": None, "data_aug_scales": [64]})
    made.dump(runs[0].folder / "config.py")
    assert runs[0].finished
