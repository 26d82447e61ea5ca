"""Every figure that a training run publishes: its tag in TensorBoard, MLflow and W&B, and its gauge in Prometheus. No others are published.

Ray exports a gauge as `ray_NAME`, with the label `run` and those in the braces of the tag.
"""

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """`tag` may have parts in braces; `name` is the Prometheus gauge, whose labels they become."""

    tag: str
    name: str
    description: str

    @property
    def labels(self) -> tuple[str, ...]:
        """The parts in braces."""
        return tuple(re.findall(r"{(\w+)}", self.tag))

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the tags that this is the metric of."""
        return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>\\w+)", self.tag) + "$")


METRICS = (
    Metric("loss/{part}", "pixellm_train_loss", "text per answer token, bce and dice per mask, and their weighted total"),
    Metric("loss_{part}/{task}", "pixellm_train_task_loss", "the same of the conversations of one task"),
    Metric("learning_rate/{part}", "pixellm_train_learning_rate", "of each trained part of the model"),
    Metric("optimizer/learning_rate_factor", "pixellm_train_learning_rate_factor", "share of the peak learning rates"),
    Metric("optimizer/gradient_norm", "pixellm_train_gradient_norm", "before clipping, mean over the steps"),
    Metric("optimizer/skipped_steps", "pixellm_train_skipped_steps", "steps of the interval that changed nothing"),
    Metric("speed/images_per_s", "pixellm_train_images_per_s", "photos of all workers per second"),
    Metric("speed/tokens_per_s", "pixellm_train_tokens_per_s", "tokens of all workers per second, padding left out"),
    Metric("speed/step_s", "pixellm_train_step_s", "seconds of an optimiser step"),
    Metric("speed/data_wait_share", "pixellm_train_data_wait_share", "share of the time that workers wait for micro-batches"),
    Metric("speed/tflop_per_s", "pixellm_train_tflop_per_s", "1e12 counted operations of a worker per second"),
    Metric("speed/mfu", "pixellm_train_mfu", "share of the device's peak, where that is known"),
    Metric("time_s/{part}", "pixellm_train_time_s", "seconds of a step in data_wait, forward, backward, optimizer; mean over workers"),
    Metric("memory/peak_gb", "pixellm_train_peak_memory_gb", "1e9 bytes at the peak of the worker with most: of the GPU, else resident"),
    Metric("data/set_aside", "pixellm_train_set_aside", "rows and conversations of the interval that could not be used"),
    Metric("progress/step", "pixellm_train_step", "optimiser steps done"),
    Metric("progress/epoch", "pixellm_train_epoch", "epoch of the last row"),
    Metric("progress/left_s", "pixellm_train_left_s", "seconds to the last step at the speed of the interval"),
    Metric("checkpoint/stall_s", "pixellm_train_checkpoint_stall_s", "seconds that training stood still for the last checkpoint"),
    Metric("validation/{figure}", "pixellm_train_validation",
           "giou, ciou, wrong_count_share, failed_photos, duration_s of the last validated checkpoint, best_giou, and failures so far"),
)


@functools.cache
def metric_of(tag: str) -> tuple[Metric, dict[str, str]]:
    """The metric of a tag, and its labels. Raises KeyError for a tag that is not in `METRICS`."""
    for metric in METRICS:
        if match := metric.pattern.match(tag):
            return metric, match.groupdict()
    raise KeyError(f"{tag!r} is published but not in METRICS")
