"""What a training run is: one strict configuration, read from YAML and saved in each of its checkpoints."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pixellm.settings import Seed, StrictModel
from pixellm.train.engine_settings import EngineSettings
from pixellm.train.reporting import TelemetrySettings, ValidationSettings
from pixellm.uris import ModelUri, Uri

Part = Literal["vision_tower", "projector", "language_model", "codebook", "mask_head"]
PARTS: tuple[Part, ...] = ("vision_tower", "projector", "language_model", "codebook", "mask_head")

RANDOM_TINY = "tiny-random"


class DataEntry(StrictModel):
    """A folder of shards. `weight` is its share of the rows, relative to the others'; given to all or to none."""

    uri: Uri
    weight: float | None = Field(None, gt=0)


class LearningRates(StrictModel):
    """Peak learning rate of each part of the model."""

    vision_tower: float = Field(default=3e-4, ge=0)
    projector: float = Field(default=3e-4, ge=0)
    language_model: float = Field(default=3e-4, ge=0)
    codebook: float = Field(default=3e-4, ge=0)
    mask_head: float = Field(default=3e-4, ge=0)


class LossWeights(StrictModel):
    """Weights of the three losses; the defaults are the paper's released run."""

    text: float = Field(default=1.0, ge=0)
    bce: float = Field(default=2.0, ge=0)
    dice: float = Field(default=0.5, ge=0)


class LoraSettings(StrictModel):
    """Low-rank adapters on the language model's projections, whose own weights then stay frozen."""

    r: int = Field(default=8, gt=0)
    alpha: float = Field(default=16, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = Field(default=("q_proj", "v_proj"), min_length=1, description="names of the projections, in every layer")
    token_tables: bool = Field(
        default=False, description="train the language model's token tables too, as the released code does; else only the codebook's rows")


class FailureSettings(StrictModel):
    """What a run bears, and for how long, before it starts again from its last checkpoint or stops."""

    storage_patience_s: float = Field(default=600, gt=0, description="how long a store that does not answer is asked again")
    step_timeout_s: float = Field(default=1800, gt=0, description="a step that takes longer hangs: the workers say where, and start again")
    loss_limit: float = Field(default=10, gt=1, description="a step whose loss is above so many times its running mean is skipped")
    max_skipped_steps: int = Field(default=10, ge=0, description="skipped steps in a row that a run bears; one more stops it with a report")

    @model_validator(mode="after")
    def _a_store_that_is_away_is_no_hang(self) -> "FailureSettings":
        if self.step_timeout_s <= self.storage_patience_s:
            raise ValueError(f"step_timeout_s is {self.step_timeout_s:g}, storage_patience_s {self.storage_patience_s:g}: waiting for a "
                             "store would be taken for a hang; make the first one longer")
        return self


def _to_entry(value: object) -> object:
    return {"uri": value} if isinstance(value, str) else value


class TrainConfig(EngineSettings):
    """One run. The same `run` below the same `storage` continues where its last checkpoint is."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run, its folder below `storage`")
    storage: Uri = Field(description="URI that holds the folders of all runs")
    model: ModelUri = Field("tiny", description="model directory or URI; `tiny` ships with the package, `tiny-random` starts from nothing")
    data: tuple[Annotated[DataEntry, BeforeValidator(_to_entry)], ...] = Field(
        min_length=1, description="shard folders: URIs, each row once an epoch, or {uri, weight}, mixed row by row in these shares")
    epoch_rows: int | None = Field(None, gt=0, description="rows of an epoch; by default the set largest for its weight is seen once")
    data_tasks_per_worker: int = Field(2, gt=0, description="tasks that read, decode and collate for a worker at a time")
    stream_memory_mb: float = Field(512, gt=0, description="micro-batches of a worker that wait in the object store")

    steps: int = Field(gt=0, description="optimiser steps of the whole run")
    max_conversations_per_photo: int = Field(3, gt=0)
    max_rejected_share: float = Field(0.05, ge=0, lt=1, description="share of rows that may be set aside before the run stops")

    learning_rates: LearningRates = LearningRates()
    warmup_steps: int = Field(100, ge=0)
    decay: Literal["linear", "cosine"] = "linear"
    loss_weights: LossWeights = LossWeights()
    refinement_alpha: float = Field(2.0, ge=1)
    mask_loss_resolution: Literal["decoder", "photo"] = Field(
        "decoder", description="`photo` is the released code's; its memory grows with the photos")
    lora: LoraSettings | None = None
    frozen: tuple[Part, ...] = ()

    num_workers: int = Field(2, gt=0)
    min_workers: int | None = Field(None, gt=0, description="the run goes on with so few when nodes are lost, and grows again up to "
                                                            "num_workers when others come; by default it waits for num_workers")
    resize_check_s: float = Field(60, ge=0, description="how often a run that has min_workers looks for nodes that have come")
    cpus_per_worker: float = Field(0.75, gt=0, description="below 1 leaves a part of each core's reservation to Ray Data")
    torch_threads: int = Field(1, gt=0, description="threads of each worker's tensor operations")
    max_failures: int = Field(3, ge=-1, description="worker failures after which the run resumes from its last checkpoint; -1: any number")
    failures: FailureSettings = FailureSettings()

    checkpoint_every_steps: int = Field(200, gt=0)
    keep_last: int = Field(2, gt=0, description="newest checkpoints that stay on storage")
    keep_best: int = Field(1, ge=0, description="checkpoints of the highest validation gIoU that stay besides")
    log_every_steps: int = Field(10, gt=0)
    telemetry: TelemetrySettings = TelemetrySettings()
    validation: ValidationSettings | None = Field(None, description="held-out questions that each checkpoint answers beside the training")
    seed: Seed = 0

    @model_validator(mode="after")
    def _something_is_trained(self) -> "TrainConfig":
        if not self.trained_parts:
            raise ValueError("every part is frozen or has a learning rate of 0: nothing would be trained")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}, num_workers {self.num_workers}; the second is the most that a run has")
        if self.lora is not None and "language_model" in self.frozen:
            raise ValueError("`lora` trains adapters in the language model, but it is in `frozen`; drop one of the two")
        return self

    @property
    def trained_parts(self) -> tuple[Part, ...]:
        """Parts that are neither in `frozen` nor at learning rate 0; the mask head only where masks are trained."""
        frozen = self.frozen if self.trains_masks else (*self.frozen, "mask_head")
        return tuple(part for part in PARTS if part not in frozen and getattr(self.learning_rates, part) > 0)

    @property
    def trains_masks(self) -> bool:
        """Whether a mask loss counts. Without one, masks are not decoded: only what the model says is trained."""
        return self.loss_weights.bce > 0 or self.loss_weights.dice > 0

    @property
    def run_uri(self) -> str:
        """Folder of this run."""
        return f"{self.storage.rstrip('/')}/{self.run}"
