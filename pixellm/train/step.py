"""One optimiser step: the learning rate, the gradient of the whole global batch, and whether it is taken. No Ray here."""

import math
import time
from typing import Protocol

import torch
from torch import distributed

from pixellm.data.collate import MicroBatch
from pixellm.data.schema import TASKS
from pixellm.model.packing import unpack_batch
from pixellm.train.config import TrainConfig
from pixellm.train.deepspeed import Engine
from pixellm.train.forward import forward_losses, weighted_loss
from pixellm.train.guard import StepGuard
from pixellm.train.tasks import TASK_KEYS, sums_by_task
from pixellm.train.telemetry import Interval


class Schedule(Protocol):
    """What decides the learning rate."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def decay(self) -> str: ...


def learning_rate_factor(step: int, config: Schedule) -> float:
    """What the peak learning rates are multiplied by in step `step` (0-based): up linearly over the warm-up, then down to 0 at `steps`."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def optimiser_step(engine: Engine, batches: list[MicroBatch], config: TrainConfig, factor: float, guard: StepGuard | None = None,
                   num_repeated: int = 0, asks: bool = False) -> Interval:
    """One optimiser step over this worker's micro-batches: the gradient is that of the whole global batch, however it is cut.

    Text loss is divided by the answer tokens, bce and dice by the masks, of all micro-batches of all workers; losses and counts of the
    result are sums over these. The last `num_repeated` batches only keep this worker at work as long as the others: they count nothing.
    A step whose loss `guard` does not accept, or whose gradient is no number, changes nothing: `num_skipped` of the result is 1.
    `num_asking` of the result says how many workers came with `asks`.
    """
    counted = batches[:len(batches) - num_repeated]
    counts = torch.tensor([[batch.num_answer_tokens, batch.num_masks, batch.num_photos, batch.num_conversations, batch.num_tokens,
                            len(batch.set_aside)] for batch in counted], dtype=torch.int64).sum(0).to(engine.device)
    distributed.all_reduce(counts)
    interval = Interval(1, 0.0, 0.0, 0.0, *counts.tolist())
    scale = distributed.get_world_size()  # DeepSpeed averages gradients over workers, the losses below are shares of a global mean
    tokens, masks = max(interval.num_answer_tokens, 1), max(interval.num_masks, 1)
    sums = torch.zeros(len(TASK_KEYS) + 1, device=engine.device)
    sums[-1] = float(asks)
    times = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    for i, batch in enumerate(batches):
        tensors = unpack_batch(batch.tensors, engine.device)
        started = time.perf_counter()
        losses = forward_losses(engine.forward, tensors, config)
        loss = weighted_loss(losses, config.loss_weights, tokens, masks)
        if i < len(counted):
            sums[:-1] += sums_by_task(losses, tensors["task_index"]).flatten()
        else:
            loss = loss * 0
        if i == len(batches) - 1:
            distributed.all_reduce(sums)
            interval.by_task = dict(zip(TASK_KEYS, sums[:-1].tolist(), strict=True))
            interval.text, interval.bce, interval.dice, *_ = sums[:-1].view(-1, len(TASKS)).sum(1).tolist()
            interval.num_asking = round(float(sums[-1]))
            if guard is not None and not guard.accepts(interval.total(config.loss_weights.model_dump())):
                loss = loss * math.nan  # every stage of DeepSpeed leaves a step out whose gradient is no number
        forwarded = time.perf_counter()
        engine.backward(loss * scale)
        backwarded = time.perf_counter()
        norm = engine.step(factor)
        times["forward"] += forwarded - started
        times["backward"] += backwarded - forwarded
        times["optimizer"] += time.perf_counter() - backwarded
    assert norm is not None, "the last micro-batch ends an optimiser step"
    interval.num_skipped = int(not math.isfinite(norm))
    interval.gradient_norm = 0.0 if interval.num_skipped else norm
    interval.parts_s = times
    return interval
