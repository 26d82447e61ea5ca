"""When a run has seen no progress for long enough."""

import pytest

from pixellm.train.history import History, is_over
from tests.train.examples import make_config


@pytest.mark.parametrize(("scores", "patience", "over"), [
    ([], 1, False), ([0.5], 1, False), ([0.5, 0.6], 1, False), ([0.5, 0.5], 1, True), ([0.5, 0.6, 0.4], 2, False),
    ([0.6, 0.5, 0.4], 2, True), ([0.6, 0.5, None, None], 2, False), ([0.6, 0.5, None, 0.4], 2, True),
    ([0.3, 0.6, 0.1, 0.2, 0.7], 3, False)])
def test_patience(tmp_path, scores, patience, over):
    config = make_config(storage=str(tmp_path), validation={"shards": "x", "patience": patience})
    history = History.read(config.run_uri)
    for step, score in enumerate(scores):
        history.add(step, {"failed": 1.0} if score is None else {"giou": score})
    assert is_over(config) is over and History.read(config.run_uri).num_failures == scores.count(None)
    assert not is_over(make_config(storage=str(tmp_path), validation={"shards": "x"})), "without patience a run never stops early"


def test_a_step_that_is_validated_again_counts_once_and_order_is_that_of_steps(tmp_path):
    history = History.read(str(tmp_path))
    for step, score in ((20, 0.5), (10, 0.7), (20, 0.6)):
        history.add(step, {"giou": score})
    assert History.read(str(tmp_path)).scores == [(10, 0.7), (20, 0.6)]
