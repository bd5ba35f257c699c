"""With the real package, in a process of its own: it reads where to write when it is imported."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.util.loggers.entries import CONFIG
from util.loggers.protocol import PROJECT

CODE = """
import json, sys
from pathlib import Path
from tests.util.loggers.entries import CONFIG, write_run
from util.loggers.protocol import PROJECT, Place
from util.loggers.trackio_run import TrackioLogger

folder = Path(sys.argv[1])
write_run(TrackioLogger(Place(folder, "abc", 0)), folder, [0, 1])
write_run(TrackioLogger(Place(folder, "abc", 2)), folder, [2])
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs(PROJECT)
print("found", json.dumps({"name": name, "config": SQLiteStorage.get_run_config(PROJECT, name),
                  "logs": SQLiteStorage.get_logs(PROJECT, name)}, default=str))
"""


def test_everything_is_in_one_run_also_when_it_goes_on(tmp_path):
    folder, store = tmp_path / "r50", tmp_path / "store"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")}
    done = subprocess.run([sys.executable, "-c", CODE, str(folder)], cwd=Path(__file__).parents[3], text=True,
                          env=environment | {"TRACKIO_DIR": str(store)}, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    run = json.loads(line.removeprefix("found "))
    assert run["name"] == "r50-abc" and (store / f"{PROJECT}.db").is_file()
    assert {name: run["config"][name] for name in CONFIG} == CONFIG
    assert [(row["step"], row["epoch"], row["coco/AP"]) for row in run["logs"] if "epoch" in row] == [
        (0, 0, 0.0), (1, 1, pytest.approx(0.1)), (2, 2, pytest.approx(0.2))]
    others = [row for row in run["logs"] if "epoch" not in row]
    assert {name for row in others for name in row} >= {"summary", "curves"}
    assert {row["step"] for row in others} == {1, 2}
    assert len(list(store.glob("media/**/*.png"))) == 2
