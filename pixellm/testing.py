"""Fakes and small random things for tests. Nothing here is ever used where a person would meet it."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache

from pixellm.errors import InputError
from pixellm.inference.answers import Answer, TokenRules
from pixellm.inference.config import AnswerOptions
from pixellm.inference.requests import Request
from pixellm.inference.segmentation import Segmentation, Target
from pixellm.masks import RLE, mask_to_rle, rle_area, rle_box_xywh
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.presets import build_tiny
from pixellm.model.processing_pixellm import SEG, parse_template

WORDS = ("red", "green", "blue", "circle", "ring", "square")
TEXTS = tuple(f"where is the {color} {shape}? the {color} {shape}, the one and the other." for color in WORDS[:3] for shape in WORDS[3:])


def tiny_model_and_processor(seed: int = 0) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """The `tiny` preset with random weights, in eval mode."""
    model, processor = build_tiny(TEXTS, seed)
    return model.eval(), processor


def random_photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """RGB noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@torch.inference_mode()
def generate_alone(model: PixelLMForConditionalGeneration, request: Request) -> tuple[Answer, torch.Tensor]:
    """What the engine must give, in the plainest way: one request, its whole prompt with hidden tokens masked, then token by token.

    Returns the answer and its masks' logits (K, M, M). It shares the rules of an answer with the engine, and none of its machinery.
    """
    with model.device:  # where tensors are made that are not told where
        return _generate_alone(model, request, TokenRules(model.config))


def _generate_alone(model: PixelLMForConditionalGeneration, request: Request, rules: TokenRules) -> tuple[Answer, torch.Tensor]:
    photo = request.photo
    features = model.encode_photos(photo.pixel_values.unsqueeze(0).to(model.device), torch.tensor([photo.resized_size_hw]))
    input_ids = torch.tensor([list(request.prompt_ids)])
    attention_mask = torch.ones_like(input_ids)
    attention_mask[input_ids == model.config.image_token_id] = torch.tensor(photo.image_token_mask)
    answer, cache = Answer(request, list(model.config.codebook_token_ids)), DynamicCache(config=model.config.text_config)
    embeds, positions = model.embed_tokens(input_ids, features.image_embeds), torch.arange(input_ids.shape[1])[None]
    waiting: list[int] = []
    while not answer.is_complete:
        hidden = model.language_model.base_model(inputs_embeds=embeds, attention_mask=attention_mask, position_ids=positions,
                                                 past_key_values=cache, use_cache=True).last_hidden_state[0, -1]
        if answer.token_ids:
            answer.add_states(hidden.unsqueeze(0))
        if not waiting and not answer.is_complete:
            token_id = request.sampler.choose(rules.mask_(model.token_logits(hidden)))
            waiting = answer.accept(rules.check(token_id, 1 << 62), hidden)
        if waiting:
            embeds, positions = model.embed_tokens(torch.tensor([[waiting.pop(0)]]), None), positions[:, -1:] + 1
            attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
    if not answer.states:
        return answer, torch.zeros(0, model.config.mask_size, model.config.mask_size, device="cpu")
    photo_of_target = torch.zeros(len(answer.states), dtype=torch.int64)
    return answer, model.mask_head(features.scale_features, photo_of_target, torch.stack(answer.states))[0].cpu()


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

    def segment(self, images, questions, max_new_tokens=128, options=AnswerOptions(), forced_answers=None):
        """One answer per question; for one image and one question, one. Raises InputError `question_empty` like the real one."""
        if isinstance(images, Image.Image):
            return self.segment([images], [questions], max_new_tokens)[0]
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
