"""A segmenter that answers by rule, so that tests can see batches and make chosen questions fail."""

import threading

import numpy as np

from pixellm.errors import InputError
from pixellm.inference.segmentation import Segmentation, Target
from pixellm.masks import mask_to_rle, rle_area, rle_box_xywh


class RuleSegmenter:
    """Finds "the left half" of any photo. The text tells the size of the batch that the question was in.

    A question with "poison" makes the whole batch raise, one with "refuse" raises InputError, "none" is answered without a mask.
    """

    def __init__(self):
        self.batch_sizes, self.limits, self.gate = [], [], threading.Event()
        self.gate.set()

    def segment(self, images, questions, max_new_tokens=128):
        self.gate.wait(10)
        self.batch_sizes.append(len(questions))
        self.limits.append(max_new_tokens)
        for question in questions:
            if "poison" in question:
                raise RuntimeError(f"cannot answer {question}")
            if "refuse" in question:
                raise InputError("photo_unreadable", "the photo is refused")
        return [self._answer(image, question, len(questions)) for image, question in zip(images, questions, strict=True)]

    def _answer(self, image, question, batch_size):
        if "none" in question:
            return Segmentation("Nothing is there.", "Nothing is there.", [], "stop", 4, (image.height, image.width))
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[:, :image.width // 2] = True
        rle = mask_to_rle(mask)
        target = Target("the left half", (6, 19), rle, 0.87654321, rle_box_xywh(rle), rle_area(rle))
        text = f"It is the left half, in a batch of {batch_size}."
        return Segmentation(text, text.replace("half", "half {seg}"), [target], "stop", 9, (image.height, image.width))


def build_rule_segmenter(config):
    """A segmenter factory for `serve.app.build_application`."""
    return RuleSegmenter()
