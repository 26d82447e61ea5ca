"""How fast the released algorithm could be at best: its operations and bytes without its waste, over what this machine can do.

Without its waste: one vision pass for each photo, one prefill for each question, each answer token once, forced groups in one step, the
weights read once for each step of the whole batch. Operations are counted on the model's own modules, mask head included.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from jobs.benchmarks.inference_contenders import CODEBOOK_IDS, Question, wait_for
from pixellm.inference.cpu import linear
from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.flops import count_flops

MATRIX_SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
BANDWIDTH_BYTES = 512 << 20


@dataclass(frozen=True)
class MachineRates:
    """The best seen of a few tries: of matrix products in one dtype, and of reading memory."""

    flop_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Work:
    """What one part has to do for all questions together."""

    flop: float
    num_bytes: float = 0.0

    def floor_s(self, rates: MachineRates) -> float:
        return max(self.flop / rates.flop_per_s, self.num_bytes / rates.bytes_per_s)


def measure_rates(dtype: torch.dtype, device: torch.device) -> MachineRates:
    """Square products by torch and, on a CPU, by oneDNN, whichever is faster; the sum of half a gigabyte."""
    flop_per_s = 0.0
    for size in MATRIX_SIZES[device.type]:
        a, b = torch.randn(size, size, device=device).to(dtype), torch.randn(size, size, device=device).to(dtype)
        seconds = min(_best_s(functools.partial(product, a, b), device) for product in (torch.mm, linear))
        flop_per_s = max(flop_per_s, 2 * size**3 / seconds)
    numbers = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    return MachineRates(flop_per_s, BANDWIDTH_BYTES / _best_s(numbers.sum, device))


@torch.inference_mode()
def count_work(model: PixelLMForConditionalGeneration, questions: Sequence[Question]) -> dict[str, Work]:
    """Work by part for `questions`, all answered at the same time: vision, language model, mask decoder by photo and by target."""
    head, base, device = model.mask_head, model.language_model.base_model, model.device
    photo, width = questions[0].photo, model.config.text_config.hidden_size
    pixels, size = photo.pixel_values[None].to(device, model.dtype), torch.tensor([photo.resized_size_hw], device=device)
    features = model.encode_photos(pixels, size).scale_features
    states = torch.zeros(1, len(CODEBOOK_IDS), width, dtype=model.dtype, device=device)
    vision = count_flops(lambda: model.encode_photos(pixels, size))
    by_photo = count_flops(lambda: [upsample(grid) for upsample, grid in
                                    zip(head.decoder.feature_upsampling, head.decoder_features(features), strict=True)])
    by_target = count_flops(lambda: head(features, torch.tensor([0], device=device), states)) - by_photo
    prompt = torch.zeros(1, len(questions[0].prompt_ids), width, dtype=model.dtype, device=device)
    prefill = count_flops(lambda: base(inputs_embeds=prompt, use_cache=False))
    token = count_flops(lambda: base(inputs_embeds=prompt[:, :1], use_cache=False)) + count_flops(lambda: model.token_logits(prompt[:, :1]))
    # A token attends to the prompt and to half of the answer on average: two products over that many rows.
    contexts = [len(question.prompt_ids) + len(question.answer_ids) / 2 for question in questions]
    text = model.config.text_config
    attention = sum(4 * text.num_hidden_layers * width * context * len(question.answer_ids)
                    for question, context in zip(questions, contexts, strict=True))
    num_tokens, num_targets = sum(len(each.answer_ids) for each in questions), sum(each.num_targets for each in questions)
    steps = [len(question.answer_ids) - question.num_targets * (len(CODEBOOK_IDS) - 1) for question in questions]
    item_bytes = prompt.element_size()
    row_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * (width // text.num_attention_heads) * item_bytes
    weight_bytes = sum(parameter.numel() for parameter in base.parameters()) * item_bytes
    cache_bytes = sum(context * row_bytes * num_steps for context, num_steps in zip(contexts, steps, strict=True))
    num_photos = len({question.photo.key for question in questions})
    return {
        "vision tower": Work(num_photos * vision),
        "prefill": Work(len(questions) * prefill),
        "answer tokens": Work(num_tokens * token + attention, max(steps) * weight_bytes + cache_bytes),
        "mask decoder, by photo": Work(num_photos * by_photo),
        "mask decoder, by target": Work(num_targets * by_target),
    }


def _best_s(function: Callable[[], object], device: torch.device, tries: int = 7) -> float:
    function()
    seconds = []
    for _ in range(tries):
        wait_for(device)
        started = time.perf_counter()
        function()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
