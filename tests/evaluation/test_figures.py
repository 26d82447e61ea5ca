"""Ratios of sums, their intervals, and differences, against plain loops and known distributions."""

import numpy as np
import pytest

from pixellm.evaluation.figures import Figure, Term, build_figures, compare, interval, select_photos


def figure(numerators, denominators) -> Figure:
    return Figure(("",), np.array(numerators, dtype=float)[:, None], np.array(denominators, dtype=float)[:, None])


def test_terms_are_summed_by_photo_and_column():
    found = build_figures([[Term("iou", 1, 2), Term("iou", 1, 1), Term("miou", 3, 4, "cat")], [],
                           [Term("miou", 1, 4, "dog"), Term("miou", 1, 4, "cat")]])
    assert found["iou"].numerators.tolist() == [[2], [0], [0]] and found["iou"].denominators.tolist() == [[3], [0], [0]]
    assert found["iou"].value() == pytest.approx(2 / 3)
    assert found["miou"].columns == ("cat", "dog") and found["miou"].value() == pytest.approx((4 / 8 + 1 / 4) / 2)


def test_nothing_to_average():
    nothing = figure([0, 0], [0, 0])
    assert nothing.value() is None and interval(nothing) is None and compare(nothing, nothing) is None
    assert interval(figure([1], [2])) is None, "one photo says nothing of others"


def test_a_class_that_no_drawn_photo_has_is_left_out():
    classes = Figure(("a", "b"), np.array([[1.0, 0], [1, 1]]), np.array([[2.0, 0], [2, 4]]))
    assert classes.values(np.array([[2.0, 0], [1, 1]])).tolist() == [0.5, (0.5 + 0.25) / 2]


def test_an_interval_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    found = interval(figure(values, np.ones(400)), seed=1)
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 20, abs=0.002)  # 0.0008 seen
    assert found.high == pytest.approx(values.mean() + 1.96 * values.std() / 20, abs=0.002)
    assert found == interval(figure(values, np.ones(400)), seed=1) != interval(figure(values, np.ones(400)), seed=2)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = [not interval(figure(rng.random(60), np.ones(60)), seed).excludes(0.5) for seed in range(200)]
    assert 0.90 <= np.mean(hits) <= 0.99


def test_a_difference_is_paired():
    """Photos differ a lot, the models by a little and always: far more than chance, though each interval is wide."""
    rng = np.random.default_rng(0)
    hard = rng.random(50)
    one, other = figure(hard, np.ones(50)), figure(hard + 0.02 + 0.01 * rng.random(50), np.ones(50))
    assert not interval(one).excludes(other.value())
    found = compare(one, other)
    assert found.is_larger_than_chance and found.other - found.one == pytest.approx(0.025, abs=0.005)
    assert not compare(one, one).is_larger_than_chance


def test_noise_is_seldom_taken_for_a_difference():
    rng = np.random.default_rng(1)
    found = [compare(figure(rng.random(40), np.ones(40)), figure(rng.random(40), np.ones(40)), seed) for seed in range(200)]
    assert sum(each.is_larger_than_chance for each in found) <= 24  # 5 % and some, as photos are few: 15 seen


def test_selected_photos():
    both = select_photos({"iou": figure([1, 2, 3], [4, 4, 4])}, [2, 0])
    assert both["iou"].numerators.tolist() == [[3], [1]]
