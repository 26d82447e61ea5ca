"""The part of a run's configuration that becomes DeepSpeed's own: precision, ZeRO stage, what is offloaded, and a raw piece merged in."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pixellm.settings import StrictModel

Offloaded = Literal["optimizer", "parameters"]
# Keys of DeepSpeed's configuration that a run's own keys decide, and which those are.
OWN_KEYS = {
    "train_micro_batch_size_per_gpu": "photos_per_micro_step", "gradient_accumulation_steps": "accumulation",
    "train_batch_size": "photos_per_micro_step, accumulation and num_workers", "gradient_clipping": "clip_norm",
    "scheduler": "warmup_steps and decay", "optimizer": "betas, weight_decay and learning_rates", "bf16": "precision", "fp16": "precision",
    "data_types": "precision", "zero_optimization.stage": "zero_stage", "zero_optimization.overlap_comm": "use_gpu",
    "zero_optimization.offload_optimizer": "offload", "zero_optimization.offload_param": "offload",
    "zero_force_ds_cpu_optimizer": "offload",
}


def _read_json(value: object) -> object:
    """A path of a JSON file stands for what is in it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(Path(value).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"is not the path of a JSON file: {error}") from None


class EngineSettings(StrictModel):
    """What DeepSpeed does with a model. Every combination is checked when the configuration is read, before anything starts."""

    precision: Literal["bf16", "fp32"] = "bf16"
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="what workers share out among them: 0 nothing, 1 optimizer states, 2 gradients too, 3 the weights too")
    offload: tuple[Offloaded, ...] = Field(
        (), description="what lies in the host's memory instead of the GPU's: `optimizer` (zero_stage 1 to 3), `parameters` (3)")
    gradient_checkpointing: bool = Field(
        False, description="keep the input of each layer only and compute the rest again on the way back: less memory, a third more time")
    deepspeed: Annotated[dict[str, Any], BeforeValidator(_read_json)] = Field(
        {}, description="raw DeepSpeed configuration, or the path of its JSON file; merged in, it may not contradict the keys here")
    photos_per_micro_step: int = Field(8, gt=0, description="per worker")
    accumulation: int = Field(1, gt=0, description="micro-steps of each worker per optimiser step; a run keeps workers x accumulation")
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, ge=0, description="0: no clipping")
    use_gpu: bool = False

    @model_validator(mode="after")
    def _engine_fits(self) -> "EngineSettings":
        if "parameters" in self.offload and self.zero_stage != 3:
            raise ValueError(f"`offload` holds parameters, which needs zero_stage 3, found {self.zero_stage}; set zero_stage=3 or drop it")
        if "optimizer" in self.offload and self.zero_stage == 0:
            raise ValueError("`offload` holds optimizer, which needs zero_stage 1, 2 or 3, found 0; raise zero_stage or drop it")
        self.to_deepspeed()
        return self

    def to_deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's configuration. Gradients are accumulated in float32 wherever the stage can.

        Raises ValueError where `deepspeed` contradicts a key of the run, with both values.
        """
        cpu = {"device": "cpu", "pin_memory": self.use_gpu}
        zero: dict[str, Any] = {"stage": self.zero_stage, "overlap_comm": self.use_gpu}
        zero |= {key: cpu for key, name in (("offload_optimizer", "optimizer"), ("offload_param", "parameters")) if name in self.offload}
        adam: dict[str, Any] = {
            "torch_adam": True, "betas": list(self.betas), "eps": 1e-8, "weight_decay": self.weight_decay, "lr": 0.0}
        if self.use_gpu:  # torch's default on a GPU takes as much memory again as the states while it steps
            adam["fused"] = True
        values: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.photos_per_micro_step,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.clip_norm,
            "optimizer": {"type": "AdamW", "params": adam},
            "zero_optimization": zero,
            "bf16": {"enabled": self.precision == "bf16"},
            "steps_per_print": None,
        }
        if self.precision == "bf16" and self.zero_stage > 0:
            values["data_types"] = {"grad_accum_dtype": "fp32"}
        if "optimizer" in self.offload:
            values["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW on the host: DeepSpeed's would be compiled first
        _merge(values, self.deepspeed, "")
        return values


def _merge(values: dict[str, Any], raw: dict[str, Any], path: str) -> None:
    """Puts `raw` into `values`. What a key of the run decides may be said again, with the same value."""
    for key, value in raw.items():
        place = f"{path}{key}"
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value, f"{place}.")
            continue
        owner = next((own for prefix, own in OWN_KEYS.items() if f"{place}.".startswith(f"{prefix}.")), None)
        if owner and (key not in values or values[key] != value):
            found = f"is {values[key]!r} by" if key in values else "is decided by"
            raise ValueError(f"`deepspeed` says {place} = {value!r}, but it {found} {owner}; take it out of `deepspeed` and set {owner}")
        values[key] = value
