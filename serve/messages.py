"""What goes between the HTTP face and the model replicas: questions about a photo, and the events that answer them. No Ray, no torch."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pixellm.errors import PixelLMError
from pixellm.inference.config import AnswerOptions
from serve.schemas import Mask, SegmentResponse


@dataclass(frozen=True)
class Ask:
    """Questions about one photo, `pixels` uint8 (H, W, 3), RGB, upright. With `parts`, text and masks come as soon as they are known.

    The time of `options` counts from when a replica takes the questions.
    """

    pixels: np.ndarray
    questions: tuple[str, ...]
    max_new_tokens: int
    options: AnswerOptions
    parts: bool = False
    model: str = ""  # by its name


@dataclass(frozen=True)
class Event:
    """What is new about the answer to question `index`: the next piece of its text, its next mask, all of it, or why there is none.

    The whole answer is the last event of its question; an error is the last event of all.
    """

    index: int
    news: str | Mask | SegmentResponse | PixelLMError


class Model(Protocol):
    """Whoever answers: in a deployment the model replicas, in a test a rule.

    `ask` gives no errors as events: it raises InputError, DeadlineError, ModelError or ApiError.
    """

    def ask(self, ask: Ask) -> AsyncGenerator[Event, None]: ...


def build_canary(timeout_s: float, model: str = "") -> Ask:
    """A question that asks only whether the model still answers. It has its turn among all clients."""
    pixels = np.full((16, 16, 3), 127, dtype=np.uint8)
    return Ask(pixels, ("Is anything there?",), 1, AnswerOptions(timeout_s=timeout_s, client="canary"), model=model)
