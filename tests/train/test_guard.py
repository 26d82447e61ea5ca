"""Which losses are believed."""

import math

import pytest

from pixellm.errors import DivergedError
from pixellm.train.config import FailureSettings
from pixellm.train.guard import FIRST_STEPS, StepGuard


def test_far_above_the_running_mean_is_refused_once_it_is_known():
    guard = StepGuard(FailureSettings(loss_limit=3))
    for step in range(FIRST_STEPS):
        assert guard.accepts(100.0) and not guard.accepts(math.nan) and not guard.accepts(math.inf)
        guard.note(step, 2.0, was_taken=True)
    assert guard.mean_loss == pytest.approx(2.0)
    assert guard.accepts(5.9) and not guard.accepts(6.1)
    again = StepGuard(guard.settings, **guard.state)
    assert again.mean_loss == guard.mean_loss and not again.accepts(6.1), "a resumed run decides alike"


def test_skipped_steps_in_a_row_end_the_run_and_others_only_count():
    guard = StepGuard(FailureSettings(max_skipped_steps=2))
    for step in range(1, 30, 3):
        guard.note(step, math.nan, was_taken=False)
        guard.note(step + 1, math.nan, was_taken=False)
        guard.note(step + 2, 1.0, was_taken=True)
    assert guard.num_skipped == 20 and guard.mean_loss == 1.0
    guard.note(31, 50.0, was_taken=False)
    guard.note(32, 50.0, was_taken=False)
    with pytest.raises(DivergedError, match=r"the loss of step 33 is 60, its running mean was 1: 3 steps in a row .*23 in all.* is 2"):
        guard.note(33, 60.0, was_taken=False)
