"""The friendly face of inference: photos and questions in, sentences with spans and masks out."""

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from PIL import Image

from pixellm.errors import InputError
from pixellm.inference.config import AnswerOptions, EngineConfig, InferenceConfig
from pixellm.inference.engine import Engine, EventStream
from pixellm.inference.int8 import use_int8_weights
from pixellm.inference.load import EngineLoad
from pixellm.inference.requests import EndEvent, Event, MaskEvent, PhotoInput, Request
from pixellm.inference.sampling import Forced, Greedy, Sampled, Sampler
from pixellm.inference.segmentation import AnswerReader, Segmentation, Target, TextDelta, ends_with_stop
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.load import load_model_dir
from pixellm.model.presets import pretrained_dir
from pixellm.storage import local_copy


class Segmenter:
    """A model and its processor, ready to answer from any number of threads: all their questions share one running batch."""

    def __init__(self, model: PixelLMForConditionalGeneration, processor: PixelLMProcessor, config: EngineConfig | None = None):
        self.model, self.processor = model.eval(), processor
        self._config = config or EngineConfig()
        self._engine = Engine(model, self._config)

    @classmethod
    def from_pretrained(cls, path: str, dtype: str = "float32", device: str = "cpu", config: EngineConfig | None = None,
                        int8_weights: bool = False) -> "Segmenter":
        """`path`: a model directory, its URI, or `tiny` for the weights that ship with the package. `int8_weights`: see int8.py."""
        folder = str(pretrained_dir(path)) if path == "tiny" else str(local_copy(path))
        model, processor = load_model_dir(folder, getattr(torch, dtype))
        if int8_weights:
            use_int8_weights(model)
        return cls(model.to(device), processor, config)

    @property
    def load(self) -> EngineLoad:
        """How much the engine has to do."""
        return self._engine.load

    @overload
    def segment(self, images: Image.Image, questions: str, max_new_tokens: int = ..., options: AnswerOptions = ...) -> Segmentation: ...
    @overload
    def segment(self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = ..., options: AnswerOptions = ...,
                forced_answers: Sequence[str] | None = ...) -> list[Segmentation]: ...

    def segment(self, images: Image.Image | Sequence[Image.Image], questions: str | Sequence[str], max_new_tokens: int = 128,
                options: AnswerOptions = AnswerOptions(), forced_answers: Sequence[str] | None = None) -> Segmentation | list[Segmentation]:
        """Answers `questions[i]` about `images[i]`, or one question about one image. A photo that comes again is not encoded again.

        `forced_answers`, with `{seg}` where each mask is due, are fed instead of what the model would say: only the masks are its own.

        Raises DeadlineError, and InputError: `photo_mode`, `question_empty`, `prompt_too_long`, `max_new_tokens_invalid`,
        `max_targets_invalid`, `temperature_invalid`, `top_p_invalid`, `stop_invalid`, `client_invalid`.
        """
        if isinstance(images, Image.Image) and isinstance(questions, str):
            return self.segment([images], [questions], max_new_tokens, options)[0]
        if len(images) != len(questions):  # type: ignore[arg-type]
            raise ValueError(f"found {len(images)} images but {len(questions)} questions")  # type: ignore[arg-type]
        for index, question in enumerate(questions):
            _check_question(question, f"question {index}")
        answers: list[Segmentation] = []
        asked: deque[_Asked] = deque()
        previous: tuple[Image.Image, PhotoInput] | None = None
        try:
            forced: Sequence[str | None] = forced_answers or [None] * len(questions)
            for image, question, answer in zip(images, questions, forced, strict=True):  # type: ignore[arg-type]
                if previous is None or previous[0] is not image:
                    previous = image, self.prepare_photo(image)
                asked.append(self._ask(previous[1], question, max_new_tokens, options, answer))
                if len(asked) > 2 * self._config.num_slots:  # enough to keep the engine busy; the other photos need not be in memory yet
                    answers.append(asked.popleft().wait())
            while asked:
                answers.append(asked.popleft().wait())
        finally:
            for each in asked:
                each.stream.cancel()
        return answers

    def segment_stream(self, image: Image.Image, question: str, max_new_tokens: int = 128,
                       options: AnswerOptions = AnswerOptions()) -> Iterator[TextDelta | Target | Segmentation]:
        """Like `segment` for one question, while it is written: pieces of the text, each target when its mask is ready, then everything."""
        _check_question(question, "the question")
        asked = self._ask(self.prepare_photo(image), question, max_new_tokens, options)
        try:
            for event in asked.stream:
                asked.reader.take(event)
                yield from asked.news(event)
        finally:
            asked.stream.cancel()

    def prepare_photo(self, image: Image.Image) -> PhotoInput:
        """What `answer_async` wants of a photo; once for all questions about it."""
        return PhotoInput.from_image(image, self.processor.image_processor)

    async def answer_async(self, photo: PhotoInput, question: str, max_new_tokens: int = 128, options: AnswerOptions = AnswerOptions(),
                           with_parts: bool = True) -> AsyncIterator[TextDelta | Target | Segmentation]:
        """`segment_stream` for a coroutine; without `with_parts` only the whole answer comes. Closing the iterator ends the request.

        Masks are encoded in threads, so that the event loop stays free.
        """
        _check_question(question, "the question")
        asked = self._ask(photo, question, max_new_tokens, options)
        try:
            async for event in asked.stream:
                if isinstance(event, MaskEvent):
                    await asyncio.to_thread(asked.reader.take, event)
                else:
                    asked.reader.take(event)
                if with_parts:
                    for news in asked.news(event):
                        yield news
                elif isinstance(event, EndEvent):
                    yield asked.reader.to_segmentation()
        finally:
            asked.stream.cancel()

    def _ask(self, photo: PhotoInput, question: str, max_new_tokens: int, options: AnswerOptions, forced: str | None = None) -> "_Asked":
        if "" in options.stop:
            raise InputError("stop_invalid", "a stop string is empty; leave it out")
        prompt_ids = self.processor.prompt_ids(question, options.history)
        sampler: Sampler = Greedy() if options.temperature is None else Sampled(options.temperature, options.top_p, options.seed)
        if forced is not None:
            answer_ids = self.processor.conversation_ids(question, forced)[0][len(prompt_ids):]
            max_new_tokens = len(answer_ids)
            grouped = set(self.model.config.codebook_token_ids[1:])  # which the engine adds to the first one of a group
            sampler = Forced([token_id for token_id in answer_ids if token_id not in grouped])
        request = Request(
            photo, prompt_ids, max_new_tokens, frozenset([self.processor.tokenizer.eos_token_id]),
            is_finished=functools.partial(ends_with_stop, self.processor, options.stop) if options.stop else None,
            max_targets=options.max_targets,
            sampler=sampler, client=options.client, deadline_s=None if options.timeout_s is None else time.monotonic() + options.timeout_s)
        return _Asked(self._engine.submit(request), AnswerReader(self.processor, photo, options.stop, len(prompt_ids)))


def load_segmenter(config: InferenceConfig) -> Segmenter:
    """The model of `config`, for a process that has `torch_threads` cores to itself."""
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    return Segmenter.from_pretrained(config.model, config.dtype, config.device, config.engine, config.int8_weights)


@dataclass(frozen=True)
class _Asked:
    """A question on its way. Masks are encoded in the thread that waits, beside the one that runs the model."""

    stream: EventStream
    reader: AnswerReader

    def wait(self) -> Segmentation:
        try:
            for event in self.stream:
                self.reader.take(event)
        finally:
            self.stream.cancel()
        return self.reader.to_segmentation()

    def news(self, event: Event) -> Iterator[TextDelta | Target | Segmentation]:
        """What an event that the reader has taken adds to the answer."""
        if isinstance(event, MaskEvent):
            yield self.reader.target(event.index)
        elif delta := self.reader.next_text(is_last=isinstance(event, EndEvent)):
            yield TextDelta(delta)
        if isinstance(event, EndEvent):
            yield self.reader.to_segmentation()


def _check_question(question: str, name: str) -> None:
    if not question.strip():
        raise InputError("question_empty", f"{name} is empty; ask something about the photo")
