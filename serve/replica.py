"""The model's side of a deployment: questions gathered into batches and answered in a thread.

`BatchRunner` is plain Python and is total: whatever the model does, each question gets a result or an error of its own. That matters
because one exception that leaves a `@serve.batch` function leaves later calls hanging while health stays green.
"""

import asyncio
import logging
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image
from ray import serve as ray_serve

from pixellm.drawing import color_of
from pixellm.errors import InputError, ModelError, PixelLMError
from serve.config import CONCURRENT_BATCHES, AppConfig
from serve.schemas import Mask, Rle, SegmentResponse, Usage

if TYPE_CHECKING:
    from pixellm.inference.segmentation import Segmentation

logger = logging.getLogger(__name__)


class AnySegmenter(Protocol):
    """What the replica needs of `pixellm.inference.segmenter.Segmenter`."""

    def segment(self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = ...) -> "list[Segmentation]": ...


SegmenterFactory = Callable[[AppConfig], AnySegmenter]


def load_segmenter(config: AppConfig) -> AnySegmenter:
    """The real model of `config`, on its device. Imports torch here, so that importing this module stays cheap."""
    from pixellm.inference import segmenter

    return segmenter.load_segmenter(config)


@dataclass(frozen=True)
class Question:
    """`pixels`: uint8 (H, W, 3), RGB, upright."""

    pixels: np.ndarray
    text: str
    max_new_tokens: int


# What a question looks like that asks only whether the model still answers.
CANARY = Question(np.full((16, 16, 3), 127, dtype=np.uint8), "Is anything there?", max_new_tokens=1)

Result = SegmentResponse | PixelLMError


class BatchRunner:
    """Answers lists of questions with one segmenter; never raises."""

    def __init__(self, segmenter: AnySegmenter, model_name: str):
        self._segmenter, self._model_name = segmenter, model_name

    def run(self, questions: Sequence[Question]) -> list[Result]:
        """One result for each question, in order. A batch that fails is tried again one by one, so that a bad question fails alone.

        An InputError comes back as it is; any other exception as a ModelError without the original's text, which can quote a question.
        """
        results: dict[int, Result] = {}
        order = sorted(range(len(questions)), key=lambda index: questions[index].max_new_tokens)
        for _, group in groupby(order, key=lambda index: questions[index].max_new_tokens):
            indices = list(group)
            results.update(zip(indices, self._run_group([questions[index] for index in indices]), strict=True))
        return [results[index] for index in range(len(questions))]

    def _run_group(self, questions: list[Question]) -> list[Result]:
        try:
            images = [Image.fromarray(question.pixels) for question in questions]
            answers = self._segmenter.segment(images, [question.text for question in questions], questions[0].max_new_tokens)
            if len(answers) != len(questions):
                raise ModelError(f"the segmenter gave {len(answers)} answers to {len(questions)} questions")
            return [to_response(answer, self._model_name) for answer in answers]
        except Exception as error:
            if len(questions) > 1:
                return [result for question in questions for result in self._run_group([question])]
            if isinstance(error, InputError):
                return [error]
            stack = "".join(traceback.format_tb(error.__traceback__))
            logger.error("the model failed on one question with %s\n%s", type(error).__name__, stack)
            return [ModelError(f"the model failed with {type(error).__name__}")]


def to_response(segmentation: "Segmentation", model_name: str) -> SegmentResponse:
    """The wire form of an answer."""
    masks = [Mask(id=f"mask_{index}", label=target.phrase, span=target.span, score=round(float(target.score), 4),
                  bbox=tuple(target.box_xywh), area=target.area,  # type: ignore[arg-type]
                  segmentation=Rle.model_validate(target.rle), color="#{:02x}{:02x}{:02x}".format(*color_of(index)))
             for index, target in enumerate(segmentation.targets)]
    return SegmentResponse(id=f"seg_{uuid.uuid4().hex}", model=model_name, text=segmentation.text, answer=segmentation.answer,
                           finish_reason=segmentation.finish_reason, size=segmentation.size_hw, masks=masks,
                           usage=Usage(completion_tokens=segmentation.num_tokens))


class ModelReplica:
    """One copy of the model behind a batcher; a Ray Serve deployment (serve/app.py)."""

    def __init__(self, config: AppConfig, segmenter_factory: SegmenterFactory):
        self._runner = BatchRunner(segmenter_factory(config), config.model)
        self._executor = ThreadPoolExecutor(CONCURRENT_BATCHES, thread_name_prefix="model")
        self._batches_done = self._batches_seen = 0

        @ray_serve.batch(max_batch_size=config.max_batch_size, batch_wait_timeout_s=config.batch_wait_timeout_s,
                         max_concurrent_batches=CONCURRENT_BATCHES)
        async def answer_batch(questions: list[Question]) -> list[Result]:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._runner.run, questions)
            self._batches_done += 1
            return results

        self._answer_batch = answer_batch

    async def __call__(self, question: Question) -> Result:
        """The answer, or the error as a value: raised errors would cross processes wrapped in Ray's own."""
        return await self._answer_batch(question)

    async def check_health(self) -> None:
        """Serve calls this every few seconds. A batch that went through since the last call is proof enough; else a canary is sent."""
        busy, self._batches_seen = self._batches_done != self._batches_seen, self._batches_done
        if not busy:
            result = await self._answer_batch(CANARY)
            self._batches_seen = self._batches_done
            if isinstance(result, PixelLMError):
                raise result
