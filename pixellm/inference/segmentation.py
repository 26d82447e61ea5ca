"""An answer as people and files see it: text with spans, masks of the photo's size; and how the engine's events become one."""

from collections.abc import Sequence
from dataclasses import dataclass

from pixellm.errors import DeadlineError, ModelError
from pixellm.inference.mask_encoder import EncodedMask, encode_mask
from pixellm.inference.requests import Event, FinishReason, MaskEvent, PhotoInput, TokenEvent
from pixellm.masks import RLE
from pixellm.model import PixelLMProcessor
from pixellm.model.processing_pixellm import SEG, ParsedAnswer


@dataclass(frozen=True)
class Target:
    """One thing that the answer names: its phrase and span (code points of the text), and its mask at the size of the upright photo.

    `score` is the mean probability inside the mask, in [0, 1]; an empty mask has score 0 and box [0, 0, 0, 0].
    """

    phrase: str
    span: tuple[int, int]
    rle: RLE
    score: float
    box_xywh: list[int]
    area: int


@dataclass(frozen=True)
class Segmentation:
    """An answer. `answer` is `text` with `{seg}` after each target's phrase; `size_hw` is the upright photo's; `num_prompt_tokens` counts
    those of the photo, too."""

    text: str
    answer: str
    targets: list[Target]
    finish_reason: FinishReason
    num_tokens: int
    size_hw: tuple[int, int]
    num_prompt_tokens: int = 0


@dataclass(frozen=True)
class TextDelta:
    """What comes next in the text of an answer that is being written."""

    text: str


class AnswerReader:
    """Turns the events of one request into text and targets. Masks are encoded in the thread that calls `take`."""

    def __init__(self, processor: PixelLMProcessor, photo: PhotoInput, stop: Sequence[str] = (), num_prompt_tokens: int = 0):
        self._processor, self._photo, self._stop, self._num_prompt_tokens = processor, photo, stop, num_prompt_tokens
        self._token_ids: list[int] = []
        self._masks: dict[int, EncodedMask] = {}
        self._finish_reason: FinishReason | None = None
        self._num_given = 0  # code points of the text that `next_text` returned

    def take(self, event: Event) -> None:
        """The next event. Raises DeadlineError for a request that expired, what befell it for one that failed."""
        if isinstance(event, TokenEvent):
            self._token_ids += event.token_ids
        elif isinstance(event, MaskEvent):
            self._masks[event.index] = encode_mask(event.mask_logits, self._processor.image_processor, self._photo.resized_size_hw,
                                                   self._photo.photo_size_hw)
        elif event.error is not None:
            raise event.error
        elif event.reason == "expired":
            raise DeadlineError(f"the answer was not complete in time, after {event.num_tokens} tokens; allow more time or fewer tokens")
        elif event.reason == "cancelled" or event.reason == "error":
            raise ModelError("the request was cancelled, or the engine closed")
        else:
            self._finish_reason = event.reason

    def next_text(self, is_last: bool = False) -> str:
        """The text since the last call, as far as no later token can change it: whole characters, no beginning of a stop string."""
        text = self._parsed().text
        if not is_last:
            text = text.rstrip("\ufffd")
            text = text[:len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)]
        delta = text[self._num_given:]
        self._num_given += len(delta)
        return delta

    def target(self, index: int) -> Target:
        """Target `index`, whose mask has come."""
        return self._to_target(self._parsed(), index)

    def to_segmentation(self) -> Segmentation:
        """The whole answer, after the last event."""
        assert self._finish_reason is not None
        parsed = self._parsed()
        return Segmentation(parsed.text, parsed.template, [self._to_target(parsed, index) for index in range(len(parsed.spans))],
                            self._finish_reason, len(self._token_ids), self._photo.photo_size_hw, self._num_prompt_tokens)

    def _parsed(self) -> ParsedAnswer:
        parsed = self._processor.parse_answer(self._token_ids)
        tail = parsed.template.rpartition(SEG)[2]
        found = [place for stop in self._stop if (place := tail.find(stop)) >= 0]
        if not found:
            return parsed
        num_cut = len(tail) - min(found)
        return ParsedAnswer(parsed.text[:-num_cut], parsed.template[:-num_cut], parsed.spans)

    def _to_target(self, parsed: ParsedAnswer, index: int) -> Target:
        (start, end), mask = parsed.spans[index], self._masks[index]
        return Target(parsed.text[start:end], (start, end), mask.rle, mask.score, mask.box_xywh, mask.area)


def ends_with_stop(processor: PixelLMProcessor, stop: Sequence[str], token_ids: Sequence[int]) -> bool:
    """Whether the text after the last target holds one of the `stop` strings."""
    tail = processor.parse_answer(token_ids).template.rpartition(SEG)[2]
    return any(each in tail for each in stop)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, not all of it, that `text` ends with."""
    return next((length for length in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:length])), 0)
