"""Settings for a run's GPUs: the largest micro-batch, accumulation and ZeRO stage that fit, with the same batch of a step; and hours."""

from pydantic import ValidationError

from pixellm.errors import PixelLMError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.flops import count_training
from pixellm.train.config import TrainConfig
from pixellm.train.memory import BatchShape, estimate_stages

USABLE_SHARE = 0.9  # of a GPU's memory: the rest is the CUDA context's, NCCL's and lost between allocations
STAGES = (1, 2, 3)


def recommend(architecture: PixelLMConfig, config: TrainConfig, shape: BatchShape, gpu_memory_gb: float) -> str:
    """A line with the largest micro-batch that fits, and the lowest ZeRO stage that it fits with: higher ones send more.

    Photos of an optimiser step and a worker, photos_per_micro_step x accumulation, stay what they are.
    """
    photos = config.photos_per_micro_step * config.accumulation
    limit = gpu_memory_gb * 1e9 * USABLE_SHARE
    stages = [stage for stage in STAGES if _takes_stage(config, stage)]
    for micro in (each for each in range(photos, 0, -1) if photos % each == 0):
        tried = BatchShape(micro, shape.conversations_per_photo, shape.text_tokens, shape.targets, shape.photo_size_hw)
        for stage, estimate in estimate_stages(architecture, config, tried, stages).items():
            if estimate.total <= limit:
                return (f"recommended for GPUs of {gpu_memory_gb:g} GB: photos_per_micro_step={micro} accumulation={photos // micro} "
                        f"zero_stage={stage}, {estimate.total / 1e9:.1f} GB")
    return (f"nothing fits GPUs of {gpu_memory_gb:g} GB, not one photo at zero_stage {', '.join(map(str, stages))}; take more workers at "
            "stage 3, offload=[optimizer], gradient_checkpointing=true, or larger GPUs")


def _takes_stage(config: TrainConfig, stage: int) -> bool:
    try:
        TrainConfig.model_validate(config.model_dump() | {"zero_stage": stage})
    except (ValidationError, PixelLMError):
        return False  # offloaded parameters, or a raw piece of DeepSpeed's, want another
    return True


def estimate_hours(architecture: PixelLMConfig, config: TrainConfig, shape: BatchShape, mfu: float) -> float | None:
    """Hours of the whole run, at `mfu` of telemetry.peak_tflops; None where that is not set."""
    peak = config.telemetry.peak_tflops
    if peak is None:
        return None
    photos = config.steps * config.num_workers * config.accumulation * shape.photos
    conversations = photos * shape.conversations_per_photo
    flops = count_training(architecture, config.trained_parts, config.lora is not None, config.trains_masks)
    total = flops.of(photos, conversations * shape.num_tokens(architecture), conversations, conversations * shape.targets)
    return total / (config.num_workers * peak * 1e12 * mfu) / 3600
