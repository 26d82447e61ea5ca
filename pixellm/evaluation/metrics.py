"""How good the answers are: gIoU and cIoU over matched masks, from exact pixel counts. Knows masks and counts; no model, no text, no Ray.

A row is a predicted mask matched to a true one, or a leftover of either side, which is compared with an empty mask.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pixellm.evaluation.overlaps import Overlaps, Question, count_overlaps
from pixellm.masks import RLE

FEW_TARGETS = 3


@dataclass(frozen=True)
class QuestionScore:
    """The rows of one question, and its masks taken together; small, so a whole validation set fits into a list.

    Row r has `intersections[r]` of `unions[r]` pixels and `ious[r]`. `matches` are (predicted, true) indices: they own the first rows.
    `union_intersection` and `union_union` compare the union of all predicted masks with the union of all true ones.
    """

    num_predicted: int
    num_true: int
    ious: tuple[float, ...]
    intersections: tuple[int, ...]
    unions: tuple[int, ...]
    matches: tuple[tuple[int, int], ...]
    union_intersection: int
    union_union: int

    @property
    def iou(self) -> float:
        """Mean over the rows, in [0, 1]."""
        return math.fsum(self.ious) / len(self.ious)

    @property
    def union_iou(self) -> float:
        """Of the masks taken together; 1 for a question without targets that is answered without a mask."""
        if not self.num_true and not self.num_predicted:
            return 1.0
        return self.union_intersection / self.union_union if self.union_union else 0.0


@dataclass(frozen=True)
class SplitMetrics:
    """Figures in [0, 1] over some of the questions; None where there is nothing to average.

    `giou`: mean IoU over rows. `ciou`: sum of intersections over sum of unions. `giou_per_question`: mean over questions of the mean over
    their rows. `union_giou`, `union_ciou`: the same of each question's masks taken together.
    """

    num_questions: int
    num_rows: int
    giou: float | None
    ciou: float | None
    giou_per_question: float | None
    union_giou: float | None
    union_ciou: float | None
    num_too_few: int
    num_too_many: int

    @property
    def num_wrong_count(self) -> int:
        """Questions answered with another number of masks than they have targets."""
        return self.num_too_few + self.num_too_many


@dataclass(frozen=True)
class Metrics:
    """`few`: at most 3 targets (also none); `many`: more; `no_target`: those of `few` that have none."""

    all: SplitMetrics
    few: SplitMetrics
    many: SplitMetrics
    no_target: SplitMetrics

    def to_dict(self) -> dict[str, dict[str, float | int | None]]:
        """Plain values for JSON, with `num_wrong_count` in each split."""
        return {name: asdict(split) | {"num_wrong_count": split.num_wrong_count} for name, split in vars(self).items()}


def score_question(predicted: Sequence[RLE], true: Sequence[RLE]) -> QuestionScore:
    """See `score_questions`."""
    return score_questions([(predicted, true)])[0]


def score_questions(questions: Sequence[Question]) -> list[QuestionScore]:
    """Match the predicted and true masks of each question by IoU so that the sum of IoUs is largest, and count every row.

    Without targets and without a predicted mask there is one row of IoU 1 and no pixels; a leftover is always a row of IoU 0.
    Raises RowError `size_mismatch` when the masks of a question are not all of one size, and `rle_invalid`.
    """
    return [_score(overlaps) for overlaps in count_overlaps(questions)]


def _score(overlaps: Overlaps) -> QuestionScore:
    areas_p, areas_t, both = overlaps.predicted.tolist(), overlaps.true.tolist(), overlaps.both
    unions = overlaps.predicted[:, None] + overlaps.true[None, :] - both
    # The assignment is a pure function of this matrix: equal IoUs are resolved the same way every time.
    matched = [each.tolist() for each in linear_sum_assignment(_divide(both, unions), maximize=True)]
    matches = tuple(zip(*matched, strict=True))
    left = [areas_p[place] for place in range(len(areas_p)) if place not in matched[0]]
    left += [areas_t[place] for place in range(len(areas_t)) if place not in matched[1]]
    intersections = [both.item(match) for match in matches] + [0] * len(left)
    of_unions = [unions.item(match) for match in matches] + left
    ious = [part / whole if whole else 0.0 for part, whole in zip(intersections, of_unions, strict=True)]
    if not areas_p and not areas_t:
        intersections, of_unions, ious = [0], [0], [1.0]
    return QuestionScore(len(areas_p), len(areas_t), tuple(ious), tuple(intersections), tuple(of_unions), matches,
                         overlaps.union_intersection, overlaps.union_union)


def summarize(scores: Iterable[QuestionScore]) -> Metrics:
    """All questions, and the splits by number of targets. The order of `scores` changes nothing: the sums are exact."""
    scores = list(scores)
    return Metrics(
        all=_summarize_split(scores),
        few=_summarize_split([score for score in scores if score.num_true <= FEW_TARGETS]),
        many=_summarize_split([score for score in scores if score.num_true > FEW_TARGETS]),
        no_target=_summarize_split([score for score in scores if score.num_true == 0]),
    )


def _summarize_split(scores: list[QuestionScore]) -> SplitMetrics:
    ious = [iou for score in scores for iou in score.ious]
    sum_unions = sum(sum(score.unions) for score in scores)
    sum_union_unions = sum(score.union_union for score in scores)
    return SplitMetrics(
        num_questions=len(scores),
        num_rows=len(ious),
        giou=_mean(ious),
        ciou=sum(sum(score.intersections) for score in scores) / sum_unions if sum_unions else None,
        giou_per_question=_mean([score.iou for score in scores]),
        union_giou=_mean([score.union_iou for score in scores]),
        union_ciou=sum(score.union_intersection for score in scores) / sum_union_unions if sum_union_unions else None,
        num_too_few=sum(score.num_predicted < score.num_true for score in scores),
        num_too_many=sum(score.num_predicted > score.num_true for score in scores),
    )


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """float64; 0 where `whole` is 0: two empty masks have nothing in common."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
