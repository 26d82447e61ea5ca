"""Settings of what a run says of itself: telemetry, and validation beside training."""

from typing import Literal

from pydantic import Field

from pixellm.inference.config import EngineConfig
from pixellm.settings import StrictModel
from pixellm.uris import Uri


class MlflowSettings(StrictModel):
    """Figures and pictures also to an MLflow server, as one run that a resumed training goes on with."""

    tracking_uri: str = Field(description="of the server, as all nodes reach it")
    experiment: str = "pixellm"


class WandbSettings(StrictModel):
    """Figures and pictures also to Weights & Biases; the key is read from WANDB_API_KEY."""

    project: str = "pixellm"
    entity: str | None = None
    mode: Literal["online", "offline"] = Field("online", description="offline writes files below the worker's working directory")


class TelemetrySettings(StrictModel):
    """TensorBoard files in the run's folder and Prometheus gauges are always written."""

    mlflow: MlflowSettings | None = None
    wandb: WandbSettings | None = None
    peak_tflops: float | None = Field(default=None, gt=0, description="peak of one worker's device in the run's precision, in 1e12 "
                                      "operations per second, for MFU; known for common GPUs in bf16")
    profile_steps: tuple[int, ...] = Field(default=(), description="steps (the first is 1) that torch's profiler traces on worker 0: "
                                           "`profile/step_*.json.gz` in the run's folder")


class ValidationSettings(StrictModel):
    """Each checkpoint answers held-out questions by free generation, on actors beside the training."""

    shards: Uri = Field(description="URI of a folder of held-out shards")
    max_rows: int | None = Field(256, gt=0, description="photos, the first of the shuffled shards; null for all")
    num_workers: int = Field(1, gt=0, description="copies of the model")
    cpus_per_worker: float = Field(1.0, gt=0, description="beside those of the training workers")
    gpus_per_worker: float = Field(0.0, ge=0, description="beside those of the training workers")
    torch_threads: int | None = Field(None, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(8, gt=0, description="photos in one call of the model")
    max_new_tokens: int = Field(128, gt=0)
    engine: EngineConfig = EngineConfig()
    max_failed_share: float = Field(0.05, ge=0, le=1, description="share of photos set aside above which it counts as failed")
    timeout_s: float = Field(3600, gt=0, description="of one validation; then it counts as failed")
    num_pictures: int = Field(6, ge=0, description="questions shown in TensorBoard, prediction beside truth, the same ones each time")
    patience: int | None = Field(None, gt=0, description="stop after so many validated checkpoints in a row without a better gIoU")
