"""How much memory a worker of a run needs, by part: a micro-step of the model counted on `meta`, and what its ZeRO stage keeps beside it.

Nothing here needs a GPU, weights, Ray or DeepSpeed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pixellm.errors import ConfigError
from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.processing_pixellm import IGNORED_LABEL
from pixellm.train.allocations import WAY_BACK, count_step
from pixellm.train.config import TrainConfig
from pixellm.train.forward import forward_losses, weighted_loss
from pixellm.train.parameters import ParameterGroup, parameter_table, select_parameters

GIB = 1 << 30
REDUCE_BUCKET_SIZE = 500_000_000  # values, DeepSpeed's default; the bucket is allocated whole
PREFETCHED, PERSISTENT = 50_000_000, 100_000  # values, DeepSpeed's defaults of stage 3: fetched ahead, and never shared out below


@dataclass(frozen=True)
class BatchShape:
    """One micro-step: photos, conversations about each, tokens of each beside the photo's and its targets', and targets of each."""

    photos: int
    conversations_per_photo: int
    text_tokens: int
    targets: int
    photo_size_hw: tuple[int, int] = (480, 640)

    def num_tokens(self, config: PixelLMConfig) -> int:
        """T: of a whole conversation. Raises ConfigError where the language model has fewer positions."""
        total = config.num_image_tokens + self.text_tokens + self.targets * len(config.codebook_token_ids)
        limit = getattr(config.text_config, "max_position_embeddings", total)
        if total > limit:
            raise ConfigError(f"a conversation of {self.text_tokens} tokens and {self.targets} targets takes {total} with its photo, the "
                              f"language model has {limit} positions; lower text_tokens or targets")
        return total


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one worker, on its device (`parts`, at the fullest moment of a step) and in the host's memory (`host`)."""

    parts: dict[str, int]
    host: dict[str, int]
    num_parameters: int
    num_trained: int
    moment: str
    table: str = field(repr=False, default="")

    @property
    def total(self) -> int:
        """Of the device."""
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{name:<34}{num_bytes / GIB:>10.3f} GiB" for name, num_bytes in self.parts.items() if num_bytes]
        found.append(f"{'all, in ' + self.moment:<34}{self.total / GIB:>10.3f} GiB")
        return found + [f"{'on the host: ' + name:<34}{num_bytes / GIB:>10.3f} GiB" for name, num_bytes in self.host.items() if num_bytes]


def build_batch(config: PixelLMConfig, shape: BatchShape, device: str, photo_masks: bool = False) -> dict[str, Tensor]:
    """A micro-batch of that shape, as the collator gives them. On `meta` its integers are real."""
    whole, side = torch.device("cpu" if device == "meta" else device), config.vision_config.image_size
    num_conversations, length = shape.photos * shape.conversations_per_photo, shape.num_tokens(config)
    num_targets, num_answer = num_conversations * shape.targets, length - config.num_image_tokens - shape.text_tokens // 4
    scale = side / max(shape.photo_size_hw)
    resized = [int(value * scale + 0.5) for value in shape.photo_size_hw]
    words = torch.full((shape.text_tokens,), 3)
    groups = torch.tensor(config.codebook_token_ids).repeat(shape.targets)
    row = torch.cat([torch.full((config.num_image_tokens,), config.image_token_id), words, groups])
    ids = row.repeat(num_conversations, 1).to(whole)
    labels = ids.clone()
    labels[:, :-num_answer] = IGNORED_LABEL
    mask_hw = shape.photo_size_hw if photo_masks else (config.mask_size, config.mask_size)
    masks = (num_targets, *mask_hw)
    floats = {"pixel_values": (shape.photos, 3, side, side), "target_masks": masks, "target_valid": masks}
    conversations = torch.arange(num_conversations, device=whole)
    return {
        **{name: torch.ones(size, device=device) for name, size in floats.items()},
        "resized_sizes_hw": torch.tensor([resized] * shape.photos, device=whole),
        "photo_sizes_hw": torch.tensor([list(shape.photo_size_hw)] * shape.photos, device=whole),
        "photo_index": conversations // shape.conversations_per_photo, "input_ids": ids, "labels": labels,
        "attention_mask": torch.ones_like(ids), "target_conversation": conversations.repeat_interleave(shape.targets)}


def estimate_memory(architecture: PixelLMConfig, config: TrainConfig, shape: BatchShape) -> MemoryEstimate:
    """Memory of one worker of `config` with micro-batches of `shape`. Raises ConfigError and ModelError of either."""
    return estimate_stages(architecture, config, shape, [config.zero_stage])[config.zero_stage]


def estimate_stages(architecture: PixelLMConfig, config: TrainConfig, shape: BatchShape,
                    stages: Iterable[int]) -> dict[int, MemoryEstimate]:
    """`estimate_memory` at each of `stages`, whatever `config.zero_stage` is; the step is counted once."""
    precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(architecture).to(precision).train()
        groups = select_parameters(model, config)
    model.to(precision)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = build_batch(architecture, shape, "meta", config.mask_loss_resolution == "photo")

    def step() -> Tensor:
        return weighted_loss(forward_losses(model, batch, config), config.loss_weights, 1, 1)

    counter = count_step(model, step, "fused" if config.use_gpu else "plain")
    activations = {part: num_bytes for part, num_bytes in counter.peak.items() if part != WAY_BACK}
    activations["on the way back"] = counter.peak[WAY_BACK]
    batch_bytes, table = sum(tensor.nbytes for tensor in batch.values()), parameter_table(model, groups)
    return {stage: StateMemory.of(model, groups, config, stage).add_step(activations, counter.peak_with_gradients, batch_bytes, table)
            for stage in stages}


@dataclass(frozen=True)
class StateMemory:
    """What DeepSpeed keeps between micro-steps, in bytes, by ZeRO stage, and what an optimiser step needs beside it."""

    weights: int
    gathered_weights: int
    gradients: int
    optimizer: int
    buckets: int
    update: int
    host: dict[str, int]
    has_own_gradients: bool
    num_parameters: int
    num_trained: int

    @classmethod
    def of(cls, model: nn.Module, groups: list[ParameterGroup], config: TrainConfig, stage: int) -> "StateMemory":
        """Estimate `config` at ZeRO `stage`, from DeepSpeed 0.19's code; docs/train.md says what was measured."""
        parameters, num_workers = list(model.parameters()), config.num_workers
        total, trained = (sum(each.numel() for each in found) for found in (
            parameters, [parameter for group in groups for parameter in group.parameters.values()]))
        width, share = (2 if config.precision == "bf16" else 4), 1 / (num_workers if stage else 1)
        owned = int(trained * share)
        bucket = min(trained, config.deepspeed.get("zero_optimization", {}).get("reduce_bucket_size", REDUCE_BUCKET_SIZE))
        weights, gathered = total * width, 0
        if stage == 3:
            layer = max(sum(each.numel() for each in module.parameters(recurse=False)) for module in model.modules())
            resident = sum(each.numel() for each in parameters if each.numel() <= PERSISTENT)
            weights, gathered = int((total - resident) * width / num_workers) + resident * width, (layer + PREFETCHED) * width
        has_master = config.precision == "bf16" or stage > 0
        optimizer = owned * (12 if has_master else 8)
        if stage == 0:
            gradients, update = trained * width, trained * 4 if has_master else 0
        else:
            gradients, update = (trained if stage == 1 else owned) * 4, 0
        host, buckets = {}, bucket * width * (2 if config.use_gpu else 1) if stage else 0
        if "optimizer" in config.offload:
            host["optimizer states"], optimizer = optimizer, 0
            host["gradients"], gradients = gradients, 0
        if "parameters" in config.offload:
            host["weights"], weights = weights, 0
        host["loading the weights"] = total * 4
        return cls(weights, min(gathered, total * width), gradients, optimizer, buckets, update, host, stage > 0, total, trained)

    def add_step(self, activations: dict[str, int], with_gradients: int, batch_bytes: int, table: str) -> MemoryEstimate:
        """The fuller of two moments: where activations peak, and the update of the weights."""
        kept = {"weights": self.weights, "weights, gathered": self.gathered_weights, "optimizer states": self.optimizer}
        peak = sum(activations.values())
        gradients = self.gradients if self.has_own_gradients else max(0, with_gradients - peak)
        backward = kept | {"gradients": gradients, "buckets": self.buckets, "batch": batch_bytes} | {
            f"activations, {part}": num_bytes for part, num_bytes in activations.items()}
        update = kept | {"gradients": self.gradients, "gradients in float32": self.update, "buckets": self.buckets, "batch": batch_bytes}
        parts, moment = max((backward, "the backward pass"), (update, "the update"), key=lambda each: sum(each[0].values()))
        return MemoryEstimate(parts, self.host, self.num_parameters, self.num_trained, moment, table)

