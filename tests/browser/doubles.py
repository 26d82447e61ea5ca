"""A model for the page's tests: answers by rule, word by word, and can be held or made to refuse."""

import asyncio
import threading

import numpy as np

from pixellm.inference.segmentation import Segmentation, Target, TextDelta
from pixellm.masks import mask_to_rle, rle_area, rle_box_xywh
from pixellm.model.processing_pixellm import SEG, parse_template
from serve.messages import Ask
from tests.serve.doubles import RuleModel, RuleSegmenter

ANSWER = f"I see 🍏 the left half {SEG}, a disc {SEG} and the right half {SEG}."


def halves_and_disc(height: int, width: int) -> list[np.ndarray]:
    """Masks (H, W) of the three targets of ANSWER: the left half, a disc in the middle that lies on both halves, the right half."""
    y, x = np.mgrid[:height, :width]
    disc = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 4) ** 2
    return [x < width // 2, disc, x >= width // 2]


class WordSegmenter(RuleSegmenter):
    """Gives ANSWER to every question, but repeats one that begins with "echo " as the label of its only mask.

    Words come one by one, each mask after its phrase. While `go` is cleared, an answer stops after `words_before_hold` words. `asked` holds
    (question, history) of each call; `num_left` counts answers that were given up.
    """

    def __init__(self):
        super().__init__()
        self.num_left, self.words_before_hold = 0, 2
        self.go = threading.Event()
        self.go.set()

    async def answer_async(self, photo, question, max_new_tokens=128, options=None, with_parts=True):
        self.asked.append((question, options.history))
        template, (text, spans) = ANSWER, parse_template(ANSWER)
        if question.startswith("echo "):
            text = question.removeprefix("echo ")
            template, spans = f"{text} {SEG}", [(0, len(text))]
        masks = halves_and_disc(photo.height, photo.width)[:len(spans)]
        rles = [mask_to_rle(mask) for mask in masks]
        targets = [Target(text[start:end], (start, end), rle, 0.5 + 0.1 * index, rle_box_xywh(rle), rle_area(rle))
                   for index, ((start, end), rle) in enumerate(zip(spans, rles, strict=True))]
        try:
            if with_parts:
                said, waiting = 0, list(targets)
                for number, word in enumerate(text.split(" ")):
                    while number == self.words_before_hold and not self.go.is_set():
                        await asyncio.sleep(0.01)
                    piece = word if number == 0 else f" {word}"
                    yield TextDelta(piece)
                    said += len(piece)
                    while waiting and waiting[0].span[1] <= said:
                        yield waiting.pop(0)
                    await asyncio.sleep(0.001)
        except (asyncio.CancelledError, GeneratorExit):
            self.num_left += 1
            raise
        yield Segmentation(text, template, targets, "stop", 9, (photo.height, photo.width))


class PageModel(RuleModel):
    """A Model that raises the errors of `refusals` first, one for each request, and then lets its segmenter answer."""

    def __init__(self):
        super().__init__(WordSegmenter())
        self.refusals: list[Exception] = []

    async def ask(self, ask: Ask):
        if self.refusals:
            raise self.refusals.pop(0)
        async for event in super().ask(ask):
            yield event
