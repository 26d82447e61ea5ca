"""What each protocol counts of an answer. docs/evaluation.md has them side by side, with where they come from."""

from collections.abc import Callable, Iterator
from typing import Literal, get_args

from pixellm.evaluation.figures import Term
from pixellm.evaluation.metrics import FEW_TARGETS, QuestionScore
from pixellm.evaluation.overlaps import count_overlaps
from pixellm.inference.batch import Record
from pixellm.masks import RLE

Protocol = Literal["muse", "referring", "generalised_referring", "multi_referring", "reason_seg", "semantic"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
# What a protocol's papers print first.
HEADLINES: dict[Protocol, tuple[str, ...]] = {
    "muse": ("judged_giou", "judged_ciou", "giou", "ciou"), "referring": ("ciou", "giou"),
    "generalised_referring": ("giou", "ciou", "n_acc", "t_acc"), "multi_referring": ("giou", "ciou"), "reason_seg": ("giou", "ciou"),
    "semantic": ("miou",)}
BEST_SCORE = 10.0  # of a judge

Judgement = tuple[float, ...]  # a judge's score of each row, 0 to 10


def terms(protocol: Protocol, record: Record, score: QuestionScore, judgement: Judgement | None) -> Iterator[Term]:
    """What one answered question adds to the figures of `protocol`."""
    yield from _COUNTERS[protocol](record, score, judgement)


def _muse(record: Record, score: QuestionScore, judgement: Judgement | None) -> Iterator[Term]:
    split = "few" if score.num_true <= FEW_TARGETS else "many"
    for term in _muse_of_all(record, score, judgement):
        yield term
        yield Term(f"{term.figure}_{split}", term.numerator, term.denominator)


def _muse_of_all(record: Record, score: QuestionScore, judgement: Judgement | None) -> Iterator[Term]:
    if judgement is not None:
        weights = [each / BEST_SCORE for each in judgement]
        yield Term("judged_giou", sum(weight * iou for weight, iou in zip(weights, score.ious, strict=True)), len(score.ious))
        yield Term("judged_ciou", sum(weight * area for weight, area in zip(weights, score.intersections, strict=True)), sum(score.unions))
        yield Term("judge_score", sum(judgement), len(judgement))
    yield from _rows(record, score, judgement)
    yield from (Term(f"union_{term.figure}", term.numerator, term.denominator) for term in _unions(record, score, judgement))


def _rows(record: Record, score: QuestionScore, judgement: Judgement | None) -> Iterator[Term]:
    """Each matched pair and each leftover is a row."""
    yield Term("giou", sum(score.ious), len(score.ious))
    yield Term("ciou", sum(score.intersections), sum(score.unions))
    yield Term("giou_per_question", score.iou, 1)


def _unions(record: Record, score: QuestionScore, judgement: Judgement | None) -> Iterator[Term]:
    """All masks of an answer taken together, against all true ones."""
    yield Term("giou", score.union_iou, 1)
    yield Term("ciou", score.union_intersection, score.union_union)


def _generalised(record: Record, score: QuestionScore, judgement: Judgement | None) -> Iterator[Term]:
    yield from _unions(record, score, judgement)
    if score.num_true:
        yield Term("t_acc", score.num_predicted > 0, 1)
    else:
        yield Term("n_acc", score.num_predicted == 0, 1)


def _semantic(record: Record, score: QuestionScore, judgement: Judgement | None) -> Iterator[Term]:
    """Over the classes that are asked for. A mask is of the class that its words name, else of the one asked at its place."""
    names = record["true_categories"]
    predicted: dict[str, list[RLE]] = {name: [] for name in names}
    for place, (mask, (start, stop)) in enumerate(zip(record["masks"], record["spans"], strict=True)):
        named = [name for name in names if name.casefold() in record["text"][start:stop].casefold()]
        if named or place < len(names):
            predicted[max(named, key=len) if named else names[place]].append(mask)
    for name, masks in predicted.items():
        true = [mask for mask, category in zip(record["true_masks"], names, strict=True) if category == name]
        (overlaps,) = count_overlaps([(masks, true)])
        yield Term("miou", overlaps.union_intersection, overlaps.union_union, name)


_COUNTERS: dict[Protocol, Callable[[Record, QuestionScore, Judgement | None], Iterator[Term]]] = {
    "muse": _muse, "referring": _unions, "generalised_referring": _generalised, "multi_referring": _rows, "reason_seg": _unions,
    "semantic": _semantic}
