"""Metrics against a slow count, pixel by pixel and assignment by assignment, and against cases counted by hand."""

import itertools
import json
import random

import numpy as np
import pytest

from pixellm.errors import RowError
from pixellm.evaluation.metrics import score_question, summarize
from pixellm.masks import mask_to_rle


def rles(*masks):
    return [mask_to_rle(mask) for mask in masks]


def strip(start, stop, width=10):
    """A mask of one row, so that every count can be read off."""
    mask = np.zeros((1, width), dtype=bool)
    mask[0, start:stop] = True
    return mask


def count_slowly(predicted, true):
    """Rows (intersection, union, IoU) by the definition: every assignment is tried and every pixel looked at."""
    height, width = (*predicted, *true)[0].shape

    def areas(one, other):
        both = either = 0
        for y in range(height):
            for x in range(width):
                both += bool(one[y, x] and other[y, x])
                either += bool(one[y, x] or other[y, x])
        return both, either

    empty = np.zeros((height, width), dtype=bool)
    size = max(len(predicted), len(true))
    padded_p = [*predicted, *[None] * (size - len(predicted))]
    best = None
    for order in itertools.permutations(range(size)):
        rows = []
        for mask, place in zip(padded_p, order, strict=True):
            other = true[place] if place < len(true) else None
            both, either = areas(empty if mask is None else mask, empty if other is None else other)
            rows.append((both, either, both / either if either else 0.0))
        if best is None or sum(row[2] for row in rows) > sum(row[2] for row in best) + 1e-12:
            best = rows
    return best


def random_masks(rng, count, size_hw=(7, 9)):
    masks = []
    for _ in range(count):
        mask = np.zeros(size_hw, dtype=bool)
        top, left = rng.integers(0, size_hw[0]), rng.integers(0, size_hw[1])
        mask[top:top + rng.integers(0, 6), left:left + rng.integers(1, 6)] = True
        masks.append(mask)
    return masks


def test_rows_equal_a_slow_count_over_every_assignment():
    rng = np.random.default_rng(0)
    scores, rows = [], []
    for _ in range(60):
        predicted, true = random_masks(rng, rng.integers(0, 5)), [mask for mask in random_masks(rng, rng.integers(0, 5)) if mask.any()]
        if not predicted and not true:
            continue
        score, expected = score_question(rles(*predicted), rles(*true)), count_slowly(predicted, true)
        assert sum(score.ious) == pytest.approx(sum(row[2] for row in expected), abs=1e-12)
        assert len(score.ious) == len(expected) == max(len(predicted), len(true))
        one, other = (np.any(masks, axis=0) if masks else np.zeros((7, 9), bool) for masks in (predicted, true))
        assert (score.union_intersection, score.union_union) == ((one & other).sum(), (one | other).sum())
        scores.append(score)
        rows += expected
    metrics = summarize(scores).all
    assert metrics.giou == pytest.approx(np.mean([row[2] for row in rows]), abs=1e-12)
    assert metrics.num_rows == len(rows) and metrics.num_questions == len(scores)


def test_areas_are_exact_integers_and_ciou_their_quotient():
    rng = np.random.default_rng(1)
    pairs = [(random_masks(rng, 1, (40, 30))[0], random_masks(rng, 1, (40, 30))[0]) for _ in range(30)]
    scores = [score_question(rles(one), rles(other)) for one, other in pairs if other.any()]
    both = sum(int((one & other).sum()) for one, other in pairs if other.any())
    either = sum(int((one | other).sum()) for one, other in pairs if other.any())
    assert all(isinstance(value, int) for score in scores for value in score.intersections + score.unions)
    assert summarize(scores).all.ciou == both / either == summarize(scores).all.union_ciou


def test_matching_crosses_the_order_where_that_is_better():
    # In the given order the pairs have nothing in common.
    true = rles(strip(0, 6), strip(6, 10))
    predicted = rles(strip(6, 10), strip(0, 3))
    score = score_question(predicted, true)
    assert score.matches == ((0, 1), (1, 0))
    assert score.ious == (1.0, 0.5) and score.intersections == (4, 3) and score.unions == (4, 6)


def test_matching_maximises_the_sum_not_each_prediction_in_turn():
    # Taken in order, prediction 0 gets target 0 (4/6) and leaves nothing for prediction 1; crossed they have 1/7 and 4/5.
    true, predicted = rles(strip(0, 5), strip(5, 8)), rles(strip(1, 6), strip(0, 4))
    assert score_question(predicted, true).matches == ((0, 1), (1, 0))
    greedy_sum, best_sum = 4 / 6 + 0, 1 / 7 + 4 / 5
    assert sum(score_question(predicted, true).ious) == pytest.approx(best_sum) and best_sum > greedy_sum


def test_leftover_prediction_and_leftover_target_are_rows_of_zero():
    too_many = score_question(rles(strip(0, 4), strip(5, 8)), rles(strip(0, 4)))
    assert too_many.ious == (1.0, 0.0) and too_many.unions == (4, 3) and too_many.iou == 0.5
    too_few = score_question(rles(strip(0, 4)), rles(strip(0, 4), strip(5, 10)))
    assert too_few.ious == (1.0, 0.0) and too_few.unions == (4, 5)
    metrics = summarize([too_many, too_few]).all
    assert metrics.giou == 0.5 and metrics.ciou == 8 / 16
    assert (metrics.num_too_many, metrics.num_too_few, metrics.num_wrong_count) == (1, 1, 2)


def test_no_target_question():
    right = score_question([], [])
    assert right.ious == (1.0,) and right.unions == (0,) and right.union_iou == 1.0
    wrong = score_question(rles(strip(0, 2), strip(2, 5)), [])
    assert wrong.ious == (0.0, 0.0) and wrong.unions == (2, 3) and wrong.union_iou == 0.0
    empty = score_question(rles(strip(0, 0)), [])
    assert empty.ious == (0.0,) and empty.iou == 0.0 and empty.union_iou == 0.0
    metrics = summarize([right, wrong])
    assert metrics.no_target.giou == pytest.approx(1 / 3) and metrics.no_target.giou_per_question == 0.5
    assert metrics.all.ciou == 0.0 and metrics.no_target.num_too_many == 1
    assert summarize([right]).all.ciou is None


def test_unanswered_question():
    score = score_question([], rles(strip(0, 2), strip(2, 5)))
    assert score.ious == (0.0, 0.0) and score.unions == (2, 3) and (score.union_intersection, score.union_union) == (0, 5)


def test_union_score_forgives_the_wrong_number_of_masks():
    score = score_question(rles(strip(0, 8)), rles(strip(0, 4), strip(4, 8)))
    assert score.iou == 0.25 and score.union_iou == 1.0


def test_giou_weighs_rows_and_giou_per_question_weighs_questions():
    many = score_question(rles(*[strip(i, i + 1) for i in range(4)]), rles(*[strip(i, i + 1) for i in range(4)]))
    one = score_question(rles(strip(0, 1)), rles(strip(5, 6)))
    metrics = summarize([many, one])
    assert metrics.all.giou == 4 / 5 and metrics.all.giou_per_question == 0.5
    assert metrics.few.giou == 0.0 and metrics.many.giou == 1.0
    assert (metrics.few.num_questions, metrics.many.num_questions) == (1, 1)


def test_split_is_by_true_targets_at_most_three():
    true = [rles(*[strip(i, i + 1) for i in range(count)]) for count in range(6)]
    metrics = summarize([score_question([], each) for each in true])
    assert (metrics.few.num_questions, metrics.many.num_questions, metrics.no_target.num_questions) == (4, 2, 1)


def test_order_of_questions_changes_nothing():
    rng = np.random.default_rng(3)
    scores = [score_question(rles(*random_masks(rng, 3)), rles(*random_masks(rng, 2))) for _ in range(40)]
    shuffled = scores[:]
    random.Random(0).shuffle(shuffled)
    assert summarize(shuffled) == summarize(scores)


def test_equal_ious_are_matched_the_same_way_every_time():
    predicted, true = rles(strip(0, 2), strip(0, 2), strip(8, 9)), rles(strip(0, 2), strip(0, 2), strip(5, 6))
    scores = [score_question(predicted, true) for _ in range(5)]
    assert len(set(scores)) == 1 and scores[0].iou == pytest.approx(2 / 3)


def test_nothing_to_average_is_none_and_json():
    metrics = summarize([])
    assert metrics.all.giou is None and metrics.many.ciou is None
    assert json.loads(json.dumps(metrics.to_dict()))["all"] == metrics.to_dict()["all"]
    assert metrics.to_dict()["all"]["num_wrong_count"] == 0


def test_masks_of_different_sizes_are_refused():
    with pytest.raises(RowError, match="size"):
        score_question(rles(strip(0, 2, width=10)), rles(strip(0, 2, width=12)))
