"""The model's side of a deployment: one engine that all requests of a replica share, and its answers in the form of the wire."""

import asyncio
import logging
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from pixellm.errors import DeadlineError, InputError, ModelError
from pixellm.inference.config import AnswerOptions
from pixellm.inference.load import EngineLoad
from serve.autoscaling import LOAD_METRIC
from serve.config import ModelConfig
from serve.messages import Ask, Event, build_canary
from serve.metrics import Meters
from serve.schemas import Mask, SegmentResponse

if TYPE_CHECKING:
    from pixellm.inference.segmentation import Segmentation, Target, TextDelta

logger = logging.getLogger(__name__)


class AnySegmenter(Protocol):
    """What the replica needs of `pixellm.inference.segmenter.Segmenter`."""

    @property
    def load(self) -> EngineLoad: ...

    def prepare_photo(self, image: Image.Image) -> Any: ...

    def answer_async(self, photo: Any, question: str, max_new_tokens: int = ..., options: AnswerOptions = ...,
                     with_parts: bool = ...) -> "AsyncIterator[TextDelta | Target | Segmentation]": ...


SegmenterFactory = Callable[[ModelConfig], AnySegmenter]


def load_segmenter(config: ModelConfig) -> AnySegmenter:
    """The real model of `config`, on its device. Imports torch here, so that importing this module stays cheap."""
    from pixellm.inference import segmenter

    return segmenter.load_segmenter(config)


class ModelReplica:
    """One copy of the model; a Ray Serve deployment (serve/app.py)."""

    def __init__(self, config: ModelConfig, segmenter_factory: SegmenterFactory):
        self._segmenter, self._model_name = segmenter_factory(config), config.model_name
        self._health_timeout_s = config.health_check_timeout_s
        self._num_answers = self._num_answers_seen = 0
        self._meters = Meters()

    async def ask(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The events of all questions as they happen. Errors are events: raised ones would cross processes wrapped in Ray's own.

        Closing the iterator, which is what Serve does when the caller cancels, ends what the engine still does for it.
        """
        events: asyncio.Queue[Event] = asyncio.Queue()
        photo = asyncio.create_task(asyncio.to_thread(lambda: self._segmenter.prepare_photo(Image.fromarray(ask.pixels))))
        self._meters.show_load(self._segmenter.load)
        tasks = [asyncio.create_task(self._answer(ask, photo, index, events)) for index in range(len(ask.questions))]
        try:
            num_left = len(tasks)
            while num_left:
                event = await events.get()
                num_left -= isinstance(event.news, SegmentResponse)
                yield event
                if isinstance(event.news, Exception):
                    return
        finally:
            for task in tasks:
                task.cancel()
            self._meters.show_load(self._segmenter.load)

    async def answers(self, ask: Ask) -> list[Event]:
        """The same events together, where nobody waits for parts: one message instead of a stream costs less."""
        return [event async for event in self.ask(ask)]

    async def _answer(self, ask: Ask, photo: asyncio.Task[Any], index: int, events: asyncio.Queue[Event]) -> None:
        """Total: the last event is the answer or an error. Of an unforeseen one, not the text, which can quote a question."""
        from pixellm.inference.segmentation import Target, TextDelta

        num_masks, start_s = 0, time.monotonic()
        try:
            answer = self._segmenter.answer_async(await photo, ask.questions[index], ask.max_new_tokens, ask.options, ask.parts)
            async for news in answer:
                if isinstance(news, TextDelta):
                    events.put_nowait(Event(index, news.text))
                elif isinstance(news, Target):  # in the order of the answer: the engine decodes the masks of one answer in turn
                    if not num_masks:
                        self._meters.observe("first_mask_seconds", time.monotonic() - start_s)
                    events.put_nowait(Event(index, Mask.from_target(news, num_masks)))
                    num_masks += 1
                else:
                    self._num_answers += 1
                    self._meters.observe("answer_seconds", time.monotonic() - start_s)
                    self._meters.count("answers", finish_reason=news.finish_reason)
                    self._meters.count("tokens", news.num_tokens)
                    self._meters.count("masks", len(news.targets))
                    events.put_nowait(Event(index, SegmentResponse.from_segmentation(news, self._model_name)))
        except (InputError, DeadlineError) as error:
            events.put_nowait(Event(index, error))
        except Exception as error:
            stack = "".join(traceback.format_tb(error.__traceback__))
            logger.error("the model failed on one question with %s\n%s", type(error).__name__, stack)
            events.put_nowait(Event(index, ModelError(f"the model failed with {type(error).__name__}")))

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve calls this at each of its intervals, for the policy in `serve/autoscaling.py`."""
        return {LOAD_METRIC: self._segmenter.load.num_batches}

    async def check_health(self) -> None:
        """Serve calls this every few seconds. An answer since the last call is proof enough; else a canary goes through the engine."""
        self._meters.show_load(self._segmenter.load)
        is_busy, self._num_answers_seen = self._num_answers != self._num_answers_seen, self._num_answers
        if not is_busy:
            async for event in self.ask(build_canary(self._health_timeout_s)):
                if isinstance(event.news, Exception):
                    raise event.news
            self._num_answers_seen = self._num_answers
