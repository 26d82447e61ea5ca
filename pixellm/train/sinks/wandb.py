"""Figures and pictures to Weights & Biases. Needs `wandb` where worker 0 and the validation run."""

import hashlib
from collections.abc import Mapping

import wandb
from PIL import Image

from pixellm.train.config import TrainConfig


class WandbSink:
    """One W&B run for each writer, because one run takes figures from one process only; both are in the group of our run's name."""

    def __init__(self, config: TrainConfig, writer: str):
        settings = config.telemetry.wandb
        assert settings is not None
        name = config.run if writer == "train" else f"{config.run}-{writer}"
        run_id = hashlib.sha256(f"{config.run_uri} {writer}".encode()).hexdigest()[:16]  # the same when the run is resumed
        self._run = wandb.init(project=settings.project, entity=settings.entity, mode=settings.mode, id=run_id, name=name, group=config.run,
                               job_type=writer, resume="allow" if settings.mode == "online" else None, reinit="create_new",
                               config=config.model_dump(mode="json"), settings=wandb.Settings(silent=True))
        self._run.define_metric("progress/step")
        self._run.define_metric("*", step_metric="progress/step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Our step is a figure of its own, as W&B's own only grows and a resumed run begins before it."""
        self._run.log({"progress/step": step, **values})

    def write_picture(self, step: int, tag: str, picture: Image.Image) -> None:
        """As it is."""
        self._run.log({"progress/step": step, tag: wandb.Image(picture)})

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()
