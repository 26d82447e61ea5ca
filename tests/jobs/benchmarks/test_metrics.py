"""The three ways of `suite=metrics` give the same rows."""

import numpy as np

from jobs.benchmarks.metrics import Config, draw_question, run, score_by_loop, score_by_pycocotools
from pixellm.evaluation.metrics import score_question


def test_all_ways_agree():
    rng = np.random.default_rng(5)
    for num_targets in (1, 3, 6):
        question = draw_question(rng, num_targets, (60, 80))
        assert score_question(*question) == score_by_pycocotools(*question) == score_by_loop(*question)


def test_the_suite_says_so():
    result = run(Config(suite="metrics", num_questions=12, num_looped=3, height=40, width=50, repeats=2))
    assert result.headline["identical"] is True
    assert {"speedup_vs_loop", "speedup_vs_pycocotools", "all_questions_s"} <= set(result.headline)
