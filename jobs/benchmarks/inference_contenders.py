"""Three ways to answer the same scripted questions: as the released code does, with transformers' `generate`, and with our engine.

Random weights never speak of targets, so everybody computes the logits and then takes the script's token. All end with mask logits.
Letters: K targets of an answer, D language-model width.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LogitsProcessor, LogitsProcessorList

from pixellm.inference.config import EngineConfig
from pixellm.inference.requests import EndEvent, Event, MaskEvent, PhotoInput, Request
from pixellm.inference.running import Running
from pixellm.inference.stepper import Stepper
from pixellm.model import PixelLMConfig, PixelLMForConditionalGeneration
from pixellm.model.modeling_pixellm import PhotoFeatures
from pixellm.model.presets import preset_config

ModelSize = Literal["standard", "7b", "13b"]
VOCABULARY, IMAGE_ID, CODEBOOK_IDS, END_ID, WORD_ID = 1008, 1001, tuple(range(1002, 1008)), 2, 5
TEXT_BEFORE, TEXT_AFTER = 36, 16  # tokens of a `llava_v1` prompt before the photo, and of a question of a dozen words after it


@dataclass(frozen=True)
class Question:
    """A photo, its prompt, and the whole answer that everybody gives."""

    photo: PhotoInput
    prompt_ids: list[int]
    answer_ids: list[int]

    @property
    def num_targets(self) -> int:
        return self.answer_ids.count(CODEBOOK_IDS[0])


@dataclass
class Answered:
    """Seconds from when all questions were asked, and the masks' logits (M, M). Where masks come all at once, the first is the end."""

    first_token_s: float = 0.0
    first_mask_s: float = 0.0
    end_s: float = 0.0
    mask_logits: list[Tensor] = field(default_factory=list)


def standard_sizes() -> tuple[CLIPVisionConfig, LlamaConfig]:
    """Tower and language model of the standard case."""
    return (CLIPVisionConfig(hidden_size=256, intermediate_size=1024, num_hidden_layers=13, num_attention_heads=4, image_size=448,
                             patch_size=14),
            LlamaConfig(hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8))


def build_model(size: ModelSize, dtype: torch.dtype, device: str) -> PixelLMForConditionalGeneration:
    """Random weights. `standard`: tower of 256 dims x 13 layers at 448 px, language model of 512 dims x 8 layers, decoder at full size;
    `7b` and `13b`: towers and language models of the presets' shapes, with the small vocabulary of the standard case."""
    torch.manual_seed(0)
    if size == "standard":
        vision, text = standard_sizes()
    else:
        preset = preset_config(size)
        vision, text = preset.vision_config, preset.text_config
    text.vocab_size = VOCABULARY
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that a large model is never there in float32
    try:
        with torch.device(device):
            model = PixelLMForConditionalGeneration(PixelLMConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_ID,
                                                                  codebook_token_ids=CODEBOOK_IDS))
    finally:
        torch.set_default_dtype(default_dtype)
    return share_codebook(model).eval()


@torch.no_grad()
def share_codebook(model: PixelLMForConditionalGeneration) -> PixelLMForConditionalGeneration:
    """Copies the codebook's rows into the language model's table, where `generate` looks for them."""
    model.language_model.get_input_embeddings().weight[list(CODEBOOK_IDS)] = model.codebook.input_rows
    return model


def build_answer(num_tokens: int, num_targets: int) -> list[int]:
    """`num_tokens` ids with `num_targets` codebook groups spread over them, words first."""
    num_words = num_tokens - num_targets * len(CODEBOOK_IDS)
    assert num_words >= num_targets, f"{num_tokens} tokens are too few for {num_targets} phrases with their groups"
    ids: list[int] = []
    for target in range(num_targets):
        ids += [WORD_ID] * ((target + 1) * num_words // num_targets - target * num_words // num_targets) + list(CODEBOOK_IDS)
    return ids


def build_questions(answers: Sequence[list[int]], num_photos: int) -> list[Question]:
    """One question for each answer, about `num_photos` random photos in turn."""
    generator = torch.Generator().manual_seed(1)
    photos = [PhotoInput(torch.randn(3, 448, 448, generator=generator), (448, 448), (480, 480), [1] * 256) for _ in range(num_photos)]
    prompt_ids = [3] * TEXT_BEFORE + [IMAGE_ID] * 256 + [4] * TEXT_AFTER
    return [Question(photos[index % num_photos], prompt_ids, answer) for index, answer in enumerate(answers)]


@torch.inference_mode()
def answer_naively(model: PixelLMForConditionalGeneration, questions: Sequence[Question]) -> list[Answered]:
    """As the released code: one question at a time, no cache; tower, whole prefix and all logits again for each token."""
    started, answers = time.perf_counter(), []
    for question in questions:
        answered, ids, states = Answered(), list(question.prompt_ids), []
        for token_id in question.answer_ids:
            photos = _encode_photos(model, [question])
            embeds = model.embed_tokens(torch.tensor([ids], device=model.device), photos.image_embeds)
            hidden = model.language_model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            model.token_logits(hidden)
            wait_for(model.device)  # a token is chosen, and written, before the next
            answered.first_token_s = answered.first_token_s or time.perf_counter() - started
            if token_id in CODEBOOK_IDS:
                states.append(hidden[0, -1])
            ids.append(token_id)
        answered.mask_logits = _decode_by_mask_head(model, photos.scale_features, torch.stack(states))
        wait_for(model.device)
        answered.first_mask_s = answered.end_s = time.perf_counter() - started
        answers.append(answered)
    return answers


@torch.inference_mode()
def answer_by_generate(model: PixelLMForConditionalGeneration, questions: Sequence[Question], batch_size: int) -> list[Answered]:
    """transformers' `generate` with its KV cache over static batches, one vision pass for each question, the model's own mask head."""
    started, answers = time.perf_counter(), []
    for first in range(0, len(questions), batch_size):
        batch = questions[first:first + batch_size]
        photos = _encode_photos(model, batch)
        embeds = model.embed_tokens(torch.tensor([question.prompt_ids for question in batch], device=model.device), photos.image_embeds)
        script = _Script([question.answer_ids for question in batch])
        output = model.language_model.generate(
            inputs_embeds=embeds, attention_mask=torch.ones_like(embeds[..., 0], dtype=torch.int64), do_sample=False, eos_token_id=END_ID,
            max_new_tokens=max(len(question.answer_ids) for question in batch), pad_token_id=END_ID, output_hidden_states=True,
            return_dict_in_generate=True, logits_processor=LogitsProcessorList([script]))
        hidden = torch.stack([step[-1][:, -1] for step in output.hidden_states], 1)
        for row, question in enumerate(batch):
            places = [place for place, token_id in enumerate(question.answer_ids) if token_id in CODEBOOK_IDS]
            masks = _decode_by_mask_head(model, tuple(scale[row:row + 1] for scale in photos.scale_features), hidden[row, places])
            wait_for(model.device)
            now_s = time.perf_counter() - started
            answers.append(Answered(script.first_at - started, now_s, now_s, masks))
    return answers


class EngineContender:
    """Our engine, driven in this thread. `stepper_class` may be one without a part of it."""

    def __init__(self, model: PixelLMForConditionalGeneration, config: EngineConfig, stepper_class: type[Stepper] = Stepper):
        self.stepper = stepper_class(model, config)
        self._num_calls = 0

    def answer(self, questions: Sequence[Question]) -> list[Answered]:
        """Photos are new to the engine in each call; the same photo in one call is the same."""
        self._num_calls += 1
        photos = {question.photo.key: dataclasses.replace(question.photo, key=f"{question.photo.key} {self._num_calls}")
                  for question in questions}
        answers = [Answered() for _ in questions]
        started = time.perf_counter()
        for question, answered in zip(questions, answers, strict=True):
            request = Request(photos[question.photo.key], question.prompt_ids, len(question.answer_ids), sampler=_ScriptedSampler(question))
            self.stepper.add(self.stepper.prepare(request, _recorder(answered, started)))
        while not self.stepper.is_idle:
            self.stepper.step()
        return answers


class StepperWithoutForcedGroups(Stepper):
    """Feeds the tokens of a codebook group one in a step, as if each had to be predicted."""

    def _choose_rows(self) -> list[tuple[Running, int]]:
        return [(running, num_rows if running.num_prompt_rows else 1) for running, num_rows in super()._choose_rows()]


class _Script(LogitsProcessor):
    """Leaves the script's token as the only one possible; the end token where the script is over. Notes when it was first asked."""

    def __init__(self, answers: Sequence[list[int]]):
        self._steps: Iterator[tuple[int, ...]] = itertools.zip_longest(*answers, fillvalue=END_ID)
        self.first_at = 0.0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.first_at = self.first_at or time.perf_counter()
        ids = torch.tensor(next(self._steps), device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, ids[:, None], 0.0)


class _ScriptedSampler:
    """The free tokens of the answer: the engine adds the rest of a group by itself."""

    def __init__(self, question: Question):
        self._ids = iter([token_id for token_id in question.answer_ids if token_id not in CODEBOOK_IDS[1:]])

    def choose(self, logits: Tensor) -> int:
        return next(self._ids)


def _recorder(answered: Answered, started: float) -> Callable[[Event], None]:
    def record(event: Event) -> None:
        now_s = time.perf_counter() - started
        answered.first_token_s = answered.first_token_s or now_s
        if isinstance(event, MaskEvent):
            answered.first_mask_s = answered.first_mask_s or now_s
            answered.mask_logits.append(event.mask_logits)
        if isinstance(event, EndEvent):
            answered.end_s = now_s
            assert event.reason == "length", f"a scripted answer ended by {event.reason}: {event.error}"

    return record


def _decode_by_mask_head(model: PixelLMForConditionalGeneration, scale_features: tuple[Tensor, ...], states: Tensor) -> list[Tensor]:
    """All targets of one answer; states (K * L*N, D)."""
    groups = states.unflatten(0, (-1, len(CODEBOOK_IDS)))
    return list(model.mask_head(scale_features, torch.zeros(len(groups), dtype=torch.int64, device=groups.device), groups)[0])


def _encode_photos(model: PixelLMForConditionalGeneration, questions: Sequence[Question]) -> PhotoFeatures:
    """One vision pass for each question."""
    return model.encode_photos(torch.stack([question.photo.pixel_values for question in questions]).to(model.device),
                               torch.tensor([question.photo.resized_size_hw for question in questions], device=model.device))


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was asked; a CPU already has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
