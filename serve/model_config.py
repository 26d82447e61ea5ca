"""One model of a deployment and its replicas. Imports neither Ray nor torch."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pixellm.inference.config import InferenceConfig
from pixellm.settings import StrictModel
from pixellm.uris import ModelUri


class AutoscalingConfig(StrictModel):
    """How many replicas of a model run, by the load that their engines measure (`serve/autoscaling.py`)."""

    min_replicas: NonNegativeInt = Field(default=1, description="0: none while nobody asks; the first question then waits for one to start")
    max_replicas: PositiveInt = 1
    target_load: PositiveFloat = Field(default=1, description="full batches that a replica is to have at hand: 1 is busy slots and nobody "
                                       "waiting; less keeps slots free, more lets questions wait")
    upscale_delay_s: float = Field(default=10, ge=0, description="how long more must be wanted before more are started")
    downscale_delay_s: float = Field(default=300, ge=0, description="how long fewer must be wanted before any is stopped")
    look_back_period_s: PositiveFloat = Field(default=30, description="the load is a mean over so long")

    @model_validator(mode="after")
    def _check_order(self) -> "AutoscalingConfig":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas ({self.max_replicas}) is below min_replicas ({self.min_replicas})")
        return self


class ModelConfig(InferenceConfig):
    """A model, how its replicas run, and what they hold."""

    model: ModelUri = Field(min_length=1, description="path or URI of an exported model directory; a LoRA adapter is served as the model "
                       "that jobs.export merges it into. Another one here is an upgrade: it takes over when its canary was answered")
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="what clients call the model, whatever its "
                             "version; the last part of its path when left out")
    max_ongoing_requests: PositiveInt = Field(default=32, description="requests that one model replica holds: those that its engine "
                                              "answers and those that wait for a slot")
    max_queued_requests: PositiveInt = Field(default=128, description="requests waiting for a replica that starts; above that the answer "
                                             "is 503")
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    num_cpus: float = Field(default=1, ge=0, description="logical CPUs of a model replica")
    num_gpus: float = Field(default=0, ge=0, description="GPUs of a model replica")
    health_check_timeout_s: PositiveFloat = Field(default=60, description="longer than a new question waits in the "
                                                  "busiest engine, or busy replicas are restarted")

    @model_validator(mode="after")
    def _check_model(self) -> "ModelConfig":
        if self.max_ongoing_requests < self.engine.num_slots:
            raise ValueError(f"max_ongoing_requests ({self.max_ongoing_requests}) is below engine.num_slots ({self.engine.num_slots}): the "
                             "engine's slots would never fill")
        if self.device.startswith("cuda") and self.num_gpus == 0:
            raise ValueError(f"device is {self.device} but num_gpus is 0: Ray hides the GPUs from such a replica; set num_gpus")
        return self

    @property
    def model_name(self) -> str:
        """What clients call the model."""
        return self.name or self.model.rstrip("/").rpartition("/")[2]
