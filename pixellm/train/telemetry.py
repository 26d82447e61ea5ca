"""What a run says of itself: console lines, and figures to its sinks. Worker 0 only; nothing here trains."""

from dataclasses import dataclass, field, fields

from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.flops import TrainingFlops, count_training
from pixellm.train.config import TrainConfig
from pixellm.train.console import format_duration, say
from pixellm.train.device import peak_tflops
from pixellm.train.sinks import build_sinks
from pixellm.train.tasks import mean_losses


@dataclass
class Interval:
    """Sums over the optimiser steps since the last line, over all workers unless said otherwise."""

    num_steps: int = 0
    text: float = 0.0
    bce: float = 0.0
    dice: float = 0.0
    num_answer_tokens: int = 0
    num_masks: int = 0
    num_photos: int = 0
    num_conversations: int = 0
    num_tokens: int = 0
    num_set_aside: int = 0
    num_asking: int = 0  # workers that ask all others for something outside of steps
    num_skipped: int = 0  # steps that changed nothing
    gradient_norm: float = 0.0
    wall_s: float = 0.0
    parts_s: dict[str, float] = field(default_factory=dict)  # mean over workers: data_wait, forward, backward, optimizer
    by_task: dict[str, float] = field(default_factory=dict)  # losses and their counts, by TASK_KEYS

    def add(self, other: "Interval") -> None:
        """Take the steps of `other` in."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            both = {name: mine.get(name, 0.0) + theirs[name] for name in theirs} if isinstance(mine, dict) else mine + theirs
            setattr(self, each.name, both)

    def losses(self) -> dict[str, float]:
        """Mean text loss per answer token, bce and dice per mask."""
        tokens, masks = max(self.num_answer_tokens, 1), max(self.num_masks, 1)
        return {"text": self.text / tokens, "bce": self.bce / masks, "dice": self.dice / masks}

    def total(self, weights: dict[str, float]) -> float:
        """Their weighted sum, which is trained."""
        return sum(weights[name] * value for name, value in self.losses().items())


class Telemetry:
    """Writes one line and one point per figure for each interval. `num_workers` share what is counted; `model` is what they train."""

    def __init__(self, config: TrainConfig, model: PixelLMConfig, num_workers: int, first_step: int = 0):
        self.config, self.num_workers = config, num_workers
        self.flops: TrainingFlops = count_training(model, config.trained_parts, config.lora is not None, config.trains_masks)
        self.peak_tflops = peak_tflops(config)
        self.sinks = build_sinks(config, "train", first_step)

    def write(self, step: int, interval: Interval, learning_rate_factor: float, epoch: int, memory_gb: float) -> None:
        """Print and record what happened in `interval`, which ends with `step`. `memory_gb`: peak of the worker that uses most."""
        values = self.values(interval, learning_rate_factor)
        left_s = (self.config.steps - step) * values["speed/step_s"]
        values |= {"progress/step": step, "progress/epoch": epoch, "progress/left_s": left_s, "memory/peak_gb": memory_gb}
        self.sinks.write(step, values)
        say(self._line(step, interval, values))

    def write_checkpoint_stall(self, step: int, stall_s: float) -> None:
        """Seconds that training stood still for the checkpoint after `step`."""
        self.sinks.write(step, {"checkpoint/stall_s": stall_s})

    def values(self, interval: Interval, learning_rate_factor: float) -> dict[str, float]:
        """What is recorded of an interval, by tag."""
        losses, wall_s, steps = interval.losses(), max(interval.wall_s, 1e-9), max(interval.num_steps, 1)
        values = {f"loss/{name}": value for name, value in losses.items()} | mean_losses(interval.by_task)
        values["loss/total"] = interval.total(self.config.loss_weights.model_dump())
        for part in self.config.trained_parts:
            values[f"learning_rate/{part}"] = getattr(self.config.learning_rates, part) * learning_rate_factor
        flop = self.flops.of(interval.num_photos, interval.num_tokens, interval.num_conversations, interval.num_masks)
        values |= {
            "optimizer/learning_rate_factor": learning_rate_factor,
            "optimizer/gradient_norm": interval.gradient_norm / steps,
            "speed/images_per_s": interval.num_photos / wall_s,
            "speed/tokens_per_s": interval.num_tokens / wall_s,
            "speed/step_s": interval.wall_s / steps,
            "speed/data_wait_share": interval.parts_s.get("data_wait", 0.0) / wall_s,
            "speed/tflop_per_s": flop / 1e12 / wall_s / self.num_workers,
            "data/set_aside": interval.num_set_aside,
            "optimizer/skipped_steps": interval.num_skipped,
        }
        if self.peak_tflops is not None:
            values["speed/mfu"] = values["speed/tflop_per_s"] / self.peak_tflops
        return values | {f"time_s/{part}": seconds / steps for part, seconds in interval.parts_s.items()}

    def _line(self, step: int, interval: Interval, values: dict[str, float]) -> str:
        parts = " ".join(f"{name} {values[f'loss/{name}']:.3f}" for name in ("text", "bce", "dice"))
        line = (f"step {step}/{self.config.steps}  loss {values['loss/total']:.3f} ({parts})"
                f"  lr x{values['optimizer/learning_rate_factor']:.3f}  grad {values['optimizer/gradient_norm']:.2f}"
                f"  {values['speed/images_per_s']:.1f} images/s  {values['speed/tokens_per_s']:.0f} tokens/s")
        line += f"  MFU {values['speed/mfu']:.0%}" if "speed/mfu" in values else ""
        line += f"  data wait {values['speed/data_wait_share']:.0%}  {format_duration(values['progress/left_s'])} left"
        line += f"  {interval.num_set_aside} set aside" if interval.num_set_aside else ""
        return line + (f"  {interval.num_skipped} STEPS SKIPPED" if interval.num_skipped else "")

    def flush(self) -> None:
        """Bring what was recorded to where it can be read."""
        self.sinks.flush()

    def close(self) -> None:
        """Flush a last time and let go of everything."""
        self.sinks.close()
