"""Losses and their counts by task of the conversation, for what a run says of itself; the gradient knows no tasks."""

import torch
from torch import Tensor

from pixellm.data.schema import TASKS
from pixellm.model.losses import LossSums

ROWS = ("text", "bce", "dice", "num_answer_tokens", "num_masks")
TASK_KEYS = tuple(f"{row}/{task}" for row in ROWS for task in TASKS)


@torch.no_grad()
def sums_by_task(losses: LossSums, task_index: Tensor) -> Tensor:
    """Sums of `ROWS` by task, (5, tasks) float32. task_index (Q,) int64: the task of each conversation, an index into TASKS."""
    of_mask = task_index[losses.target_conversation]
    parts = ((losses.text, task_index), (losses.bce, of_mask), (losses.dice, of_mask), (losses.num_answer_tokens, task_index),
             (torch.ones_like(losses.bce), of_mask))
    return torch.stack([torch.zeros(len(TASKS), device=task_index.device).index_add(0, index, values.float()) for values, index in parts])


def mean_losses(by_task: dict[str, float]) -> dict[str, float]:
    """Mean losses of the tasks that there are, by tag; `by_task` are sums by `TASK_KEYS`."""
    means = {}
    for loss, count in (("text", "num_answer_tokens"), ("bce", "num_masks"), ("dice", "num_masks")):
        for task in TASKS:
            if number := by_task.get(f"{count}/{task}", 0.0):
                means[f"loss_{loss}/{task}"] = by_task[f"{loss}/{task}"] / number
    return means
