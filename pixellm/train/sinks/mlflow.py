"""Figures and pictures to MLflow. Needs `mlflow-skinny` (or `mlflow`) where worker 0 and the validation run."""

import json
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.time import get_current_time_millis
from PIL import Image

from pixellm.train.config import TrainConfig

RUN_TAG = "pixellm.run_uri"
LONGEST_VALUE = 6000  # characters of a parameter


class MlflowSink:
    """Training, its validation and what resumes it all write to one MLflow run, found by the URI of our run."""

    def __init__(self, config: TrainConfig):
        settings = config.telemetry.mlflow
        assert settings is not None
        self._client = MlflowClient(tracking_uri=settings.tracking_uri)
        experiment = self._client.get_experiment_by_name(settings.experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(settings.experiment)
        found = self._client.search_runs([experiment_id], filter_string=f"tags.`{RUN_TAG}` = '{config.run_uri}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self._client.create_run(experiment_id, tags={RUN_TAG: config.run_uri}, run_name=config.run).info.run_id
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in config.model_dump(mode="json").items()}
        self._client.log_batch(self.run_id, params=[Param(name, value[:LONGEST_VALUE]) for name, value in values.items()])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """In one request."""
        now_ms = get_current_time_millis()
        self._client.log_batch(self.run_id, metrics=[Metric(tag, float(value), now_ms, step) for tag, value in values.items()])

    def write_picture(self, step: int, tag: str, picture: Image.Image) -> None:
        """As an artifact, `TAG/step_N.png`."""
        self._client.log_image(self.run_id, picture, artifact_file=f"{tag}/step_{step:08d}.png")

    def flush(self) -> None:
        """Everything is sent already."""

    def close(self) -> None:
        """The run has ended, until it is resumed."""
        self._client.set_terminated(self.run_id)
