import logging
import pickle

import numpy as np
import pytest

from pixellm.errors import InputError, ModelError
from serve.replica import CANARY, BatchRunner, Question
from serve.schemas import SegmentResponse
from tests.serve.doubles import RuleSegmenter


def question(text: str = "Which half?", limit: int = 8, width: int = 6) -> Question:
    return Question(np.zeros((4, width, 3), dtype=np.uint8), text, limit)


def run(*questions: Question, segmenter=None):
    segmenter = segmenter or RuleSegmenter()
    return BatchRunner(segmenter, "m").run(questions), segmenter


def test_one_pass_for_a_whole_batch_of_different_photos():
    results, segmenter = run(question(width=6), question(width=8), question("none"))
    assert segmenter.batch_sizes == [3]
    assert [result.size for result in results] == [(4, 6), (4, 8), (4, 6)]
    assert [len(result.masks) for result in results] == [1, 1, 0]


def test_order_is_kept_across_different_limits():
    results, segmenter = run(question(width=2, limit=9), question(width=4, limit=3), question(width=6, limit=9), CANARY)
    assert [result.size[1] for result in results] == [2, 4, 6, 16]
    assert sorted(zip(segmenter.limits, segmenter.batch_sizes, strict=True)) == [(1, 1), (3, 1), (9, 2)]


def test_a_bad_question_fails_alone(caplog):
    with caplog.at_level(logging.DEBUG):
        results, _ = run(question(), question("poison zanzibar"), question("refuse"), question())
    assert [type(result) for result in results] == [SegmentResponse, ModelError, InputError, SegmentResponse]
    assert results[2].code == "photo_unreadable"
    assert "zanzibar" not in str(results[1]) and "zanzibar" not in caplog.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize("answers", [[], None, [None, None], "xx"])
def test_a_segmenter_that_breaks_its_promise_gives_errors_not_exceptions(answers):
    class Broken:
        def segment(self, images, questions, max_new_tokens=128):
            return answers

    results, _ = run(question(), question(), segmenter=Broken())
    assert [type(result) for result in results] == [ModelError, ModelError]


def test_no_questions_no_pass():
    results, segmenter = run()
    assert results == [] and segmenter.batch_sizes == []


def test_results_travel_between_processes():
    results, _ = run(question(), question("poison"), question("refuse"))
    for result in results:
        copy = pickle.loads(pickle.dumps(result))
        assert type(copy) is type(result) and str(copy) == str(result)
