"""One replica in this process, with a rule in place of the model and once with a real one."""

import asyncio
import logging
import pickle
from contextlib import aclosing

import numpy as np
import pytest

from pixellm.errors import DeadlineError, InputError, ModelError
from pixellm.inference.config import AnswerOptions, EngineConfig
from pixellm.inference.segmenter import Segmenter
from pixellm.testing import random_photo, tiny_model_and_processor
from serve.config import AppConfig
from serve.messages import Ask, build_canary
from serve.replica import ModelReplica
from serve.schemas import Mask, SegmentResponse
from tests.serve.doubles import RuleSegmenter

CONFIG = AppConfig(model="models/m")


def ask(*questions: str, parts: bool = False, pixels: np.ndarray | None = None, limit: int = 8) -> Ask:
    return Ask(np.zeros((4, 6, 3), dtype=np.uint8) if pixels is None else pixels, questions, limit, AnswerOptions(timeout_s=30), parts)


def events_of(*asks: Ask, segmenter=None):
    replica = ModelReplica(CONFIG, lambda config: segmenter or RuleSegmenter())

    async def gather(one: Ask):
        return [event async for event in replica.ask(one)]

    async def run():
        return await asyncio.gather(*map(gather, asks))

    return asyncio.run(run())


def test_the_whole_answer_is_one_event():
    (events,) = events_of(ask("Which half?"))
    assert [event.index for event in events] == [0]
    assert events[0].news.model == "m" and len(events[0].news.masks) == 1


def test_parts_come_in_order_and_make_up_the_answer():
    (events,) = events_of(ask("Which half?", "none", parts=True))
    for index in (0, 1):
        news = [event.news for event in events if event.index == index]
        answer = news[-1]
        assert isinstance(answer, SegmentResponse)
        assert "".join(each for each in news if isinstance(each, str)) == answer.text
        assert [each for each in news if isinstance(each, Mask)] == answer.masks


def test_requests_run_at_the_same_time_and_a_bad_question_fails_alone(caplog):
    segmenter = RuleSegmenter()
    with caplog.at_level(logging.DEBUG):
        results = events_of(ask("Which half?"), ask("poison zanzibar"), ask("refuse"), ask("late"), ask("none"), segmenter=segmenter)
    assert [type(events[-1].news) for events in results] == [SegmentResponse, ModelError, InputError, DeadlineError, SegmentResponse]
    assert results[2][-1].news.code == "photo_unreadable"
    assert "zanzibar" not in str(results[1][-1].news) and "zanzibar" not in caplog.text
    assert "RuntimeError" in caplog.text
    for events in results:
        copy = pickle.loads(pickle.dumps(events[-1]))
        assert type(copy.news) is type(events[-1].news) and str(copy.news) == str(events[-1].news)
    assert segmenter.num_running == 0


def test_an_error_ends_the_other_questions_of_its_request():
    segmenter = RuleSegmenter()
    (events,) = events_of(ask("wait", "refuse"), segmenter=segmenter)
    assert isinstance(events[-1].news, InputError) and segmenter.left == ["wait"]


def test_who_leaves_ends_the_work():
    segmenter = RuleSegmenter()
    replica = ModelReplica(CONFIG, lambda config: segmenter)

    async def run():
        async with aclosing(replica.ask(ask("wait", "wait too", parts=True))) as events:
            async for _ in events:
                break
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(run())
    assert sorted(segmenter.left) == ["wait", "wait too"] and segmenter.num_running == 0


def test_limits_reach_the_segmenter():
    segmenter = RuleSegmenter()
    options = AnswerOptions(timeout_s=7.5, client="somebody")
    events_of(Ask(np.zeros((4, 6, 3), dtype=np.uint8), ("Which?",), 5, options), segmenter=segmenter)
    assert segmenter.asked == [("Which?", 5, options)]


def test_a_canary_goes_through_an_idle_model_only():
    segmenter = RuleSegmenter()
    replica = ModelReplica(CONFIG, lambda config: segmenter)

    async def run():
        await replica.check_health()
        [event async for event in replica.ask(ask("Which half?"))]
        await replica.check_health()
        await replica.check_health()

    asyncio.run(run())
    (canary,) = build_canary(1).questions
    assert [question for question, _, _ in segmenter.asked] == [canary, "Which half?", canary]


def test_a_model_that_fails_is_not_healthy():
    class Broken(RuleSegmenter):
        def _answer(self, image, question):
            raise RuntimeError

    with pytest.raises(ModelError, match="RuntimeError"):
        asyncio.run(ModelReplica(CONFIG, lambda config: Broken()).check_health())


def test_a_real_model_answers_as_it_does_without_a_replica():
    segmenter = Segmenter(*tiny_model_and_processor(), EngineConfig(num_slots=2))
    photo, questions = random_photo(40, 60), ["where is the red circle?", "where is the blue ring?"]
    asks = [ask(*questions, parts=parts, pixels=np.asarray(photo), limit=16) for parts in (False, True)]
    whole, parts = events_of(*asks, segmenter=segmenter)
    for index, question in enumerate(questions):
        expected = SegmentResponse.from_segmentation(segmenter.segment(photo, question, 16), "m")
        for events in (whole, parts):
            news = [event.news for event in events if event.index == index]
            assert news[-1].model_copy(update={"id": expected.id}) == expected
        assert "".join(each for each in news if isinstance(each, str)) == expected.text
        assert [each for each in news if isinstance(each, Mask)] == expected.masks
