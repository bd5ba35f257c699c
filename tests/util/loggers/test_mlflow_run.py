"""With the real package, to a database in the run's folder."""
import json
import logging

import pytest

from tests.util.loggers.entries import CONFIG, write_run
from util.loggers.mlflow_run import EXPERIMENT, SERVER, MlflowLogger
from util.loggers.protocol import PROJECT, Place


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    for name in (SERVER, EXPERIMENT):
        monkeypatch.delenv(name, raising=False)


def runs(folder):
    from mlflow import MlflowClient
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name(PROJECT).experiment_id])


def test_everything_is_in_the_database_also_when_it_goes_on(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_run(MlflowLogger(Place(tmp_path, "abc", 0)), tmp_path, [0, 1])
    client, (run,) = runs(tmp_path)
    assert run.info.run_name == tmp_path.name and run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in CONFIG.items()}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "coco/AP")] == [(0, 0), (1, 0.1)]
    artifacts = {path.name: path for path in tmp_path.glob(f"mlflow/{run.info.run_id}/artifacts/*")}
    assert artifacts.keys() == {"config.json", "summary.md", "curves.png"}
    assert json.loads(artifacts["config.json"].read_text()) == CONFIG
    assert artifacts["summary.md"].read_text() == "# Summary\nAP <50>"

    logger = MlflowLogger(Place(tmp_path, "abc", 2))
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    write_run(logger, tmp_path, [2], CONFIG | {"lr": 0.5, "new": 1})
    _, (again,) = runs(tmp_path)
    assert again.info.run_id == run.info.run_id
    assert [m.step for m in client.get_metric_history(run.info.run_id, "coco/AP")] == [0, 1, 2]
    assert again.data.params["lr"] == "0.0001" and again.data.params["new"] == "1"
    assert json.loads(artifacts["config.json"].read_text())["lr"] == 0.5

    other = MlflowLogger(Place(tmp_path, "another", 0))
    other.close(finished=False)
    _, both = runs(tmp_path)
    assert {one.info.status for one in both} == {"FINISHED", "KILLED"}
    assert caplog.records == []  # its own messages do not fill the log


def test_a_server_that_is_not_there_raises(tmp_path, monkeypatch):
    monkeypatch.setenv(SERVER, "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception, match="127.0.0.1"):
        MlflowLogger(Place(tmp_path, "abc", 0))
    assert not list(tmp_path.iterdir())
