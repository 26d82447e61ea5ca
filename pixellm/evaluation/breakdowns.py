"""Where answers are right: number of masks against number of targets, IoU by a target's size and by the number of targets."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pixellm.evaluation.metrics import QuestionScore
from pixellm.masks import RLE, rle_area

SIZES = {"small": 32**2, "medium": 96**2}  # pixels, below; COCO's borders (Lin et al. 2014); above it is large
MAX_COUNT = 6  # more than that are counted together

ScoredMasks = tuple[QuestionScore, Sequence[RLE]]  # with the true masks


def count_confusion(scores: Iterable[QuestionScore]) -> list[list[int]]:
    """`[t][p]`: questions with t targets that were answered with p masks; the last row and column are MAX_COUNT and more."""
    counts = Counter((min(score.num_true, MAX_COUNT), min(score.num_predicted, MAX_COUNT)) for score in scores)
    return [[counts[true, predicted] for predicted in range(MAX_COUNT + 1)] for true in range(MAX_COUNT + 1)]


def by_size(scored: Iterable[ScoredMasks]) -> dict[str, dict[str, Any]]:
    """Mean IoU of the true masks of each size, 0 for one that nothing was matched with."""
    found: dict[str, list[float]] = {name: [] for name in (*SIZES, "large")}
    for score, true_masks in scored:
        for iou, mask in zip(target_ious(score), true_masks, strict=True):
            found[next((name for name, border in SIZES.items() if rle_area(mask) < border), "large")].append(iou)
    return _means(found)


def by_num_targets(scores: Iterable[QuestionScore]) -> dict[str, dict[str, Any]]:
    """Mean over questions of the mean over their rows."""
    found: dict[str, list[float]] = defaultdict(list)
    for score in sorted(scores, key=lambda score: score.num_true):
        found[f"{MAX_COUNT} and more" if score.num_true >= MAX_COUNT else str(score.num_true)].append(score.iou)
    return _means(found)


def target_ious(score: QuestionScore) -> list[float]:
    """Of each true mask, with the predicted one that it is matched with."""
    matched = {true: iou for (_, true), iou in zip(score.matches, score.ious, strict=False)}
    return [matched.get(true, 0.0) for true in range(score.num_true)]


def _means(found: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {name: {"count": len(values), "iou": sum(values) / len(values) if values else None} for name, values in found.items()}
