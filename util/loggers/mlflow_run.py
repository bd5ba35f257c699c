"""MLflow: to the server or database of MLFLOW_TRACKING_URI, else to mlflow.db in the run's folder."""
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.loggers.protocol import PROJECT, Place, default_environment

SERVER, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
MAX_VALUE = 500  # characters of a parameter's value; the artifact config.json has all of it
AT_ONCE = 100  # parameters that MLflow takes in one request
TAG = "training_id"


class MlflowLogger:
    def __init__(self, place: Place):
        # A server that is gone must not hold up the other processes for long.
        default_environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="2", MLFLOW_HTTP_REQUEST_TIMEOUT="30")
        from mlflow import MlflowClient, entities

        folder, server = place.folder.resolve(), os.environ.get(SERVER)
        self.entities = entities
        self.client = MlflowClient(server or f"sqlite:///{folder / 'mlflow.db'}")
        name = os.environ.get(EXPERIMENT, PROJECT)
        experiment = self.client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self.client.create_experiment(
            name, None if server else (folder / "mlflow").as_uri())
        known = self.client.search_runs([number], f"tags.{TAG} = '{place.run_id}'")
        self.run_id = (known[0] if known else self.client.create_run(
            number, tags={TAG: place.run_id}, run_name=place.name)).info.run_id
        self.client.update_run(self.run_id, status="RUNNING")

    def config(self, values: Mapping[str, Any]) -> None:
        """A parameter keeps the value that it was given first; config.json is that of the last start."""
        self.client.log_text(self.run_id, json.dumps(dict(values), indent=1, default=str), "config.json")
        known = self.client.get_run(self.run_id).data.params
        params = [self.entities.Param(name, str(value)[:MAX_VALUE]) for name, value in values.items()
                  if name not in known]
        for start in range(0, len(params), AT_ONCE):
            self.client.log_batch(self.run_id, params=params[start:start + AT_ONCE])

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        now = round(1000 * time.time())
        self.client.log_batch(self.run_id, [self.entities.Metric(name, value, now, epoch)
                                            for name, value in values.items()])

    def text(self, name: str, markdown: str) -> None:
        self.client.log_text(self.run_id, markdown, f"{name}.md")

    def picture(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")
