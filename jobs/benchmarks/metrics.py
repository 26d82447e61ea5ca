"""Matching and counting the masks of a test set without a model, against a loop over bitmaps and against pycocotools, on one core.

`python -m jobs.benchmark suite=metrics [quick=true] [output=docs/benchmarks]`. All three give the same rows of the same questions; the loop
is timed on some of them. pycocotools is called question by question: `iou` for the pairs, `area`, and `merge` for the unions.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Case
from jobs.benchmarks.timing import paired_ratio, time_interleaved
from pixellm.evaluation.metrics import QuestionScore, score_questions
from pixellm.evaluation.overlaps import Overlaps, Question
from pixellm.masks import RLE, mask_to_rle, rle_to_mask

NUM_DISTINCT = 215


class Config(BenchmarkConfig):
    """As many questions as MUSE's test set; `quick` takes a tenth of them."""

    num_questions: int = Field(4300, gt=0, description=f"{NUM_DISTINCT} drawn ones, again and again")
    num_targets: int = Field(4, gt=0, le=8)
    height: int = Field(480, gt=0)
    width: int = Field(640, gt=0)
    num_looped: int = Field(43, gt=0, description="questions of the loop over bitmaps")
    repeats: int = Field(5, gt=0)


def run(config: Config) -> BenchmarkResult:
    """See the module."""
    if config.quick:
        config = config.model_copy(update={"num_questions": config.num_questions // 10, "num_looped": 10, "repeats": 2})
    rng = np.random.default_rng(0)
    drawn = [draw_question(rng, config.num_targets, (config.height, config.width)) for _ in range(min(NUM_DISTINCT, config.num_questions))]
    questions = list(itertools.islice(itertools.cycle(drawn), config.num_questions))
    found: dict[str, list[QuestionScore]] = {}
    seconds = time_interleaved({
        "vectorised": lambda: found.update(ours=score_questions(questions)),
        "pycocotools": lambda: found.update(coco=[score_by_pycocotools(*question) for question in questions]),
        "pycocotools, iou alone": lambda: [pair_ious(*question) for question in questions],
        "loop over bitmaps": lambda: found.update(loop=[score_by_loop(*question) for question in questions[:config.num_looped]]),
    }, config.repeats)
    each = {name: Case(name, "us/question", tuple(1e6 * value / (config.num_looped if "loop" in name else config.num_questions)
                                                  for value in case.values)) for name, case in seconds.items()}
    ratios = {name: paired_ratio(name, each[name], each["vectorised"]) for name in each}
    headline = {
        "speedup_vs_loop": round(ratios["loop over bitmaps"].median, 1), "speedup_vs_pycocotools": round(ratios["pycocotools"].median, 2),
        "speedup_vs_pycocotools_iou_alone": round(ratios["pycocotools, iou alone"].median, 2),
        "identical": found["ours"] == found["coco"] and found["ours"][:config.num_looped] == found["loop"],
        "all_questions_s": round(seconds["vectorised"].median, 2)}
    return BenchmarkResult(headline, [*each.values(), *(ratio for name, ratio in ratios.items() if name != "vectorised")], notes=(
        "vectorised, pycocotools and the loop match the masks and count rows and unions; `iou alone` gives the IoUs of the pairs only.",))


def draw_question(rng: np.random.Generator, num_targets: int, size_hw: tuple[int, int]) -> Question:
    """Wavy blobs as true masks, and the same ones shifted by a few pixels, in another order, as predicted ones."""
    y, x = np.ogrid[:size_hw[0], :size_hw[1]]
    true = []
    for _ in range(num_targets):
        centre_y, centre_x = rng.uniform(0.1, 0.9, 2) * size_hw
        angle = np.arctan2(y - centre_y, x - centre_x)
        distance = np.hypot((y - centre_y) * rng.uniform(0.6, 1.6), (x - centre_x) * rng.uniform(0.6, 1.6))
        true.append(distance < rng.uniform(0.04, 0.25) * size_hw[0] * (1 + 0.15 * np.sin(5 * angle) + 0.05 * np.sin(17 * angle)))
    predicted = [np.roll(true[place], rng.integers(-8, 9, 2), (0, 1)) for place in rng.permutation(num_targets)]
    return [mask_to_rle(mask) for mask in predicted], [mask_to_rle(mask) for mask in true]


def pair_ious(predicted: Sequence[RLE], true: Sequence[RLE]) -> np.ndarray:
    """(P, T) by pycocotools."""
    return coco_mask.iou(_to_coco(predicted), _to_coco(true), [0] * len(true))


def score_by_pycocotools(predicted: Sequence[RLE], true: Sequence[RLE]) -> QuestionScore:
    """Intersections are IoU / (1 + IoU) of the areas' sum, rounded: exact for areas below 2**50."""
    coco_p, coco_t = _to_coco(predicted), _to_coco(true)
    areas_p, areas_t = (coco_mask.area(each).astype(np.int64) for each in (coco_p, coco_t))
    ious = coco_mask.iou(coco_p, coco_t, [0] * len(true))
    both = np.rint(ious / (1 + ious) * (areas_p[:, None] + areas_t[None, :])).astype(np.int64)
    unions = [coco_mask.merge(each) for each in (coco_p, coco_t)]
    areas = coco_mask.area(unions)
    iou = coco_mask.iou(unions[:1], unions[1:], [0])[0, 0]
    union_intersection = round(iou / (1 + iou) * float(areas.sum()))
    return to_score(Overlaps(areas_p, areas_t, both, union_intersection, int(areas.sum()) - union_intersection))


def score_by_loop(predicted: Sequence[RLE], true: Sequence[RLE]) -> QuestionScore:
    """Each pair's bitmaps are made and compared, as one would write it first."""
    both = np.zeros((len(predicted), len(true)), dtype=np.int64)
    for row, one in enumerate(predicted):
        for column, other in enumerate(true):
            both[row, column] = (rle_to_mask(one) & rle_to_mask(other)).sum()
    unions = [np.logical_or.reduce([rle_to_mask(rle) for rle in masks]) for masks in (predicted, true)]
    areas = [np.array([rle_to_mask(rle).sum() for rle in masks]) for masks in (predicted, true)]
    return to_score(Overlaps(areas[0], areas[1], both, int((unions[0] & unions[1]).sum()), int((unions[0] | unions[1]).sum())))


def to_score(overlaps: Overlaps) -> QuestionScore:
    """The rows, by matching in a plain way of its own; for questions with as many masks as targets."""
    areas_p, areas_t, both = overlaps.predicted, overlaps.true, overlaps.both
    unions = areas_p[:, None] + areas_t[None, :] - both
    matched_p, matched_t = linear_sum_assignment(both / np.maximum(unions, 1), maximize=True)
    intersections, of_unions = both[matched_p, matched_t].tolist(), unions[matched_p, matched_t].tolist()
    ious = [part / whole for part, whole in zip(intersections, of_unions, strict=True)]
    return QuestionScore(len(areas_p), len(areas_t), tuple(ious), tuple(intersections), tuple(of_unions),
                         tuple(zip(matched_p.tolist(), matched_t.tolist(), strict=True)), overlaps.union_intersection, overlaps.union_union)


def _to_coco(rles: Sequence[RLE]) -> list[dict]:
    return [{"size": rle["size"], "counts": rle["counts"].encode()} for rle in rles]
