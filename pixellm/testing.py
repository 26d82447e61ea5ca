"""Fakes and small random things for tests. Nothing here is ever used where a person would meet it."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image

from pixellm.errors import InputError
from pixellm.inference.segmenter import Segmentation, Target
from pixellm.masks import RLE, mask_to_rle, rle_area, rle_box_xywh
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.presets import build_preset
from pixellm.model.processing_pixellm import SEG, parse_template

WORDS = ("red", "green", "blue", "circle", "ring", "square")
TEXTS = tuple(f"where is the {color} {shape}? the {color} {shape}, the one and the other." for color in WORDS[:3] for shape in WORDS[3:])


def tiny_model_and_processor(seed: int = 0) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """The `tiny` preset with random weights, in eval mode."""
    model, processor = build_preset("tiny", TEXTS, seed)
    return model.eval(), processor


def random_photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """RGB noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


class FakeSegmenter:
    """Has the interface of `Segmenter` and no model: the same question about the same photo always gets the same answer.

    It answers from `known`: (`pixels_key` of the photo, question) -> (answer with `{seg}`, one mask per `{seg}`). Any other question gets
    `num_targets` vertical strips of the photo. A question that contains `failing` raises RuntimeError. `calls` holds the number of
    questions and of distinct image objects of each call, each of which sleeps `delay_s`.
    """

    def __init__(self, num_targets: int = 2, known: Mapping[tuple[str, str], tuple[str, Sequence[RLE]]] | None = None,
                 failing: str | None = None, delay_s: float = 0.0):
        self.num_targets, self.known, self.failing, self.delay_s = num_targets, known or {}, failing, delay_s
        self.calls: list[tuple[int, int]] = []

    def segment(self, images: Sequence[Image.Image], questions: Sequence[str], max_new_tokens: int = 128) -> list[Segmentation]:
        """One answer per question. Raises InputError `question_empty` like the real one."""
        self.calls.append((len(questions), len({id(image) for image in images})))
        time.sleep(self.delay_s)
        for index, question in enumerate(questions):
            if not question.strip():
                raise InputError("question_empty", f"question {index} is empty; ask something about the photo")
            if self.failing and self.failing in question:
                raise RuntimeError(f"asked to fail on {self.failing!r}")
        return [self._answer(image, question, max_new_tokens) for image, question in zip(images, questions, strict=True)]

    def _answer(self, image: Image.Image, question: str, max_new_tokens: int) -> Segmentation:
        template, rles = self.known.get((pixels_key(image), question)) or self._strips(image)
        text, spans = parse_template(template)
        targets = [Target(text[start:end], (start, end), rle, 0.9 if rle_area(rle) else 0.0, rle_box_xywh(rle), rle_area(rle))
                   for (start, end), rle in zip(spans, rles, strict=True)]
        return Segmentation(text, template, targets, "stop", min(max_new_tokens, len(template.split())), (image.height, image.width))

    def _strips(self, image: Image.Image) -> tuple[str, list[RLE]]:
        edges = [round(index * image.width / max(1, self.num_targets)) for index in range(self.num_targets + 1)]
        rles = []
        for left, right in pairwise(edges):
            mask = np.zeros((image.height, image.width), dtype=bool)
            mask[:, left:right] = True
            rles.append(mask_to_rle(mask))
        phrases = [f"the part {index + 1} {SEG}" for index in range(self.num_targets)]
        return (" and ".join(phrases) or "there are none") + ".", rles


def pixels_key(image: Image.Image) -> str:
    """Names the pixels of a photo: equal photos have equal keys."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
