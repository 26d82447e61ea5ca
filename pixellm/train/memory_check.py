"""Holds the estimate of a step's memory against what a step takes: `python -m pixellm.train.memory_check architecture=tiny device=cpu`.

Plain torch with random weights and one worker at stage 0: no Ray, no DeepSpeed, no data. On `cuda` it asks torch's allocator for its peak;
on `cpu` the kernel for the largest resident memory, above what the process held before the model, with freed memory given back at once.
"""

import ctypes
import gc
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.presets import preset_config
from pixellm.settings import StrictModel, parse_command_line
from pixellm.train.config import Part, TrainConfig
from pixellm.train.forward import forward_losses, weighted_loss
from pixellm.train.memory import GIB, BatchShape, build_batch, estimate_memory
from pixellm.train.parameters import select_parameters

M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 64 << 10


class CheckConfig(StrictModel):
    """One case: a model, a device, and a micro-batch."""

    architecture: Literal["tiny", "150m", "7b", "13b"] = "tiny"
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["bf16", "fp32"] = "fp32"
    gradient_checkpointing: bool = False
    lora: bool = Field(default=False, description="adapters on the language model instead of all its weights")
    frozen: tuple[Part, ...] = ()
    photos: int = Field(default=4, gt=0)
    conversations_per_photo: int = Field(default=3, gt=0)
    text_tokens: int = Field(default=64, gt=0, description="of a conversation, beside the photo's and the targets'")
    targets: int = Field(default=3, ge=0, description="of a conversation")
    steps: int = Field(default=2, gt=1, description="optimiser steps; the first one makes the optimiser's states")


def architecture_of(name: str) -> PixelLMConfig:
    """A preset, or `150m`: between `tiny` and `7b`, small enough for a laptop."""
    if name != "150m":
        return preset_config(name)
    return PixelLMConfig(
        vision_config=CLIPVisionConfig(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, image_size=224,
                                       patch_size=14, projection_dim=512),
        text_config=LlamaConfig(vocab_size=4096, hidden_size=768, intermediate_size=2048, num_hidden_layers=14, num_attention_heads=12,
                                max_position_embeddings=1024, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        image_token_id=4096, codebook_token_ids=list(range(4097, 4103)), image_tokens_per_side=8)


def to_train_config(check: CheckConfig) -> TrainConfig:
    """The run that the estimate is made for: stage 0, one worker."""
    return TrainConfig.model_validate({
        "run": "memory-check", "storage": "none", "data": ["none"], "steps": check.steps, "zero_stage": 0, "num_workers": 1,
        "precision": check.precision, "use_gpu": check.device == "cuda", "gradient_checkpointing": check.gradient_checkpointing,
        "lora": {"dropout": 0.05} if check.lora else None, "frozen": list(check.frozen)})


def take_steps(check: CheckConfig) -> int:
    """Peak bytes of `check.steps` optimiser steps on the device, the weights included."""
    architecture, config = architecture_of(check.architecture), to_train_config(check)
    before = _start_measuring(check.device)
    precision = torch.bfloat16 if check.precision == "bf16" else torch.float32
    if check.device == "cpu":  # as a run does
        torch.backends.cuda.enable_flash_sdp(False)
    torch.set_default_dtype(precision)
    with torch.device(check.device):
        model = PixelLMForConditionalGeneration(architecture).train()
        groups = select_parameters(model, config)
    torch.set_default_dtype(torch.float32)
    model.to(precision)
    if check.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for group in groups for parameter in group.parameters.values()]
    masters = trained if precision == torch.float32 else [parameter.detach().float() for parameter in trained]
    optimizer = torch.optim.AdamW(masters, lr=1e-5, foreach=False, fused=check.device == "cuda")
    shape = BatchShape(check.photos, check.conversations_per_photo, check.text_tokens, check.targets)
    batch = build_batch(architecture, shape, check.device)
    for step in range(check.steps):
        if step == 1 and check.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        weighted_loss(forward_losses(model, batch, config), config.loss_weights, 1000, 100).backward()
        _update(trained, masters, optimizer)
    return torch.cuda.max_memory_allocated() - before if check.device == "cuda" else _resident_peak_bytes() - before


def _update(trained: list[nn.Parameter], masters: Iterable[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """What DeepSpeed does at stage 0: in bf16 the float32 copies are stepped."""
    for parameter, master in zip(trained, masters, strict=True):
        if master is not parameter:
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
    optimizer.step()
    for parameter, master in zip(trained, masters, strict=True):
        if master is not parameter:
            parameter.data.copy_(master)
        parameter.grad = master.grad = None


def _start_measuring(device: str) -> int:
    """Bytes held before the model, in torch's allocator or resident."""
    gc.collect()
    if device == "cuda":
        return torch.cuda.memory_allocated()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)  # larger tensors are mapped one by one, and unmapped when they are freed
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return _status_bytes("VmRSS")


def _resident_peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def check_memory(check: CheckConfig) -> dict[str, float]:
    """Estimate and measurement in GiB, and their ratio. A small model goes first, so that what libraries load is not counted."""
    shape = BatchShape(check.photos, check.conversations_per_photo, check.text_tokens, check.targets)
    estimate = estimate_memory(architecture_of(check.architecture), to_train_config(check), shape)
    print("\n".join(estimate.lines()), flush=True)
    take_steps(CheckConfig(device=check.device, precision=check.precision, photos=1, conversations_per_photo=1, text_tokens=8, targets=1))
    measured = take_steps(check)
    return {"estimated_gib": estimate.total / GIB, "measured_gib": measured / GIB, "estimated_over_measured": estimate.total / measured}


def main(argv: list[str] | None = None) -> None:
    """Entry point: the estimate by part, then one line of JSON."""
    check = parse_command_line(CheckConfig, __doc__ or "", argv)
    print(json.dumps(check.model_dump() | check_memory(check)))


if __name__ == "__main__":
    main()
