"""What a run says of itself: console lines, TensorBoard event files in the run's folder, Ray gauges. Rank 0 only; nothing here trains.

Event files are written locally and copied to storage at checkpoints and at the end, because object stores cannot append.
"""

import sys
import tempfile
from dataclasses import dataclass, field, fields
from pathlib import Path

from pixellm.storage import join_uri, upload_folder

EVENTS_FOLDER = "tensorboard"


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
    num_tokens: int = 0
    num_set_aside: int = 0
    num_asking: int = 0  # workers that ask all others for something outside of steps
    num_skipped: int = 0  # steps that changed nothing
    gradient_norm: float = 0.0
    wall_s: float = 0.0
    parts_s: dict[str, float] = field(default_factory=dict)  # mean over workers: data_wait, forward, backward, optimizer

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
    """Writes one line and one point per scalar for each interval."""

    def __init__(self, run_uri: str, run: str, num_steps: int, loss_weights: dict[str, float], first_step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self.uri = join_uri(run_uri, EVENTS_FOLDER)
        self.num_steps, self.loss_weights = num_steps, loss_weights
        self._is_remote = "://" in run_uri
        self._temporary = tempfile.TemporaryDirectory(prefix="pixellm-events-") if self._is_remote else None
        self._folder = Path(self._temporary.name) if self._temporary else Path(self.uri)
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step + 1 if first_step else None)
        self._gauges = _build_gauges(run)

    def write(self, step: int, interval: Interval, learning_rate_factor: float, epoch: int) -> None:
        """Print and record what happened in `interval`, which ends with `step`."""
        scalars = self.scalars(interval, learning_rate_factor)
        scalars["progress/epoch"] = epoch
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)
        for name, gauge in self._gauges.items():
            gauge.set(scalars[name])
        say(self._line(step, interval, scalars))

    def scalars(self, interval: Interval, learning_rate_factor: float) -> dict[str, float]:
        """Every value that is recorded, by TensorBoard tag."""
        losses, wall_s, steps = interval.losses(), max(interval.wall_s, 1e-9), max(interval.num_steps, 1)
        values = {f"loss/{name}": value for name, value in losses.items()}
        values["loss/total"] = interval.total(self.loss_weights)
        values |= {
            "optimizer/learning_rate_factor": learning_rate_factor,
            "optimizer/gradient_norm": interval.gradient_norm / steps,
            "speed/images_per_s": interval.num_photos / wall_s,
            "speed/tokens_per_s": interval.num_tokens / wall_s,
            "speed/step_s": interval.wall_s / steps,
            "speed/data_wait_share": interval.parts_s.get("data_wait", 0.0) / wall_s,
            "data/set_aside": interval.num_set_aside,
            "optimizer/skipped_steps": interval.num_skipped,
        }
        return values | {f"time_s/{part}": seconds / steps for part, seconds in interval.parts_s.items()}

    def _line(self, step: int, interval: Interval, scalars: dict[str, float]) -> str:
        left_s = (self.num_steps - step) * scalars["speed/step_s"]
        parts = " ".join(f"{name} {scalars[f'loss/{name}']:.3f}" for name in ("text", "bce", "dice"))
        line = (f"step {step}/{self.num_steps}  loss {scalars['loss/total']:.3f} ({parts})"
                f"  lr x{scalars['optimizer/learning_rate_factor']:.3f}  grad {scalars['optimizer/gradient_norm']:.2f}"
                f"  {scalars['speed/images_per_s']:.1f} images/s  {scalars['speed/tokens_per_s']:.0f} tokens/s"
                f"  data wait {scalars['speed/data_wait_share']:.0%}  {format_duration(left_s)} left")
        line += f"  {interval.num_set_aside} set aside" if interval.num_set_aside else ""
        return line + (f"  {interval.num_skipped} STEPS SKIPPED" if interval.num_skipped else "")

    def upload(self) -> None:
        """Bring the event files to the run's folder."""
        self._writer.flush()
        if self._is_remote:
            upload_folder(self._folder, self.uri)

    def close(self) -> None:
        """Upload a last time and let go of the files."""
        self._writer.close()
        if self._is_remote:
            upload_folder(self._folder, self.uri)
        if self._temporary:
            self._temporary.cleanup()


def say(text: str) -> None:
    """A console line. Not `print`: Ray Train replaces that in its workers, and each line would come twice."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def format_duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _build_gauges(run: str) -> dict:
    from ray.util.metrics import Gauge

    names = {"loss/total": "pixellm_train_loss", "speed/images_per_s": "pixellm_train_images_per_s",
             "speed/tokens_per_s": "pixellm_train_tokens_per_s", "speed/data_wait_share": "pixellm_train_data_wait_share"}
    gauges = {}
    for tag, name in names.items():
        gauges[tag] = Gauge(name, description=f"{tag} of the last interval of a training run", tag_keys=("run",))
        gauges[tag].set_default_tags({"run": run})
    return gauges
