"""Between people's things and tensors: photo + conversation -> model inputs, mask logits -> masks of the photo, ids -> text with spans.

Letters: B photos, Q conversations, T tokens, K targets, S side of the padded photo, M side of a mask.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from pixellm.errors import ModelError
from pixellm.model.packing import normalise_pixels, pack_mask, unpack_batch
from pixellm.model.turn_markers import find_markers, without_markers
from pixellm.photos import upright_rgb

SEG = "{seg}"
IGNORED_LABEL = -100
MaskResolution = Literal["decoder", "photo"]


class PixelLMImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """`image_size`: S, the side of the square that a photo is padded to. `mask_size`: M. `image_mean`, `image_std`: of RGB in [0, 1]."""

    image_size: int
    image_tokens_per_side: int
    mask_size: int
    image_mean: list[float]
    image_std: list[float]


class PixelLMImageProcessor(BaseImageProcessor):
    """Longest side to S (PIL bilinear), normalise, pad right and bottom with zeros. Photos are turned upright (EXIF) and made RGB."""

    model_input_names: ClassVar = ["pixel_values", "resized_sizes_hw"]
    valid_kwargs = PixelLMImagesKwargs
    image_size = 448
    image_tokens_per_side = 16
    mask_size = 128
    image_mean: ClassVar = [0.48145466, 0.4578275, 0.40821073]
    image_std: ClassVar = [0.26862954, 0.26130258, 0.27577711]

    def preprocess(self, images: Image.Image | Sequence[Image.Image], **kwargs) -> BatchFeature:
        """Returns `pixel_values` (B, 3, S, S) float32, `resized_sizes_hw` and `photo_sizes_hw` (B, 2) int64 (upright)."""
        photos = [upright_rgb(photo) for photo in ([images] if isinstance(images, Image.Image) else images)]
        found = self.to_pixels(photos)
        pixels = found.pop("pixels")
        return BatchFeature({"pixel_values": normalise_pixels(pixels, found["resized_sizes_hw"], self.image_mean, self.image_std), **found})

    def to_pixels(self, photos: Sequence[Image.Image], photo_sizes_hw: Sequence[tuple[int, int]] | None = None) -> dict[str, Tensor]:
        """Of upright RGB photos: `pixels` (B, S, S, 3) uint8, resized and padded with 0, `resized_sizes_hw` and `photo_sizes_hw`.

        `photo_sizes_hw`: the sizes in full, where photos were decoded at a smaller scale (pixellm.photos.decode_photo).
        """
        photo_sizes_hw = photo_sizes_hw or [(photo.height, photo.width) for photo in photos]
        sizes = [self.resized_size_hw(*size_hw) for size_hw in photo_sizes_hw]
        pixels = np.zeros((len(photos), self.image_size, self.image_size, 3), np.uint8)
        for i, (photo, (height, width)) in enumerate(zip(photos, sizes, strict=True)):
            pixels[i, :height, :width] = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
        return {"pixels": torch.from_numpy(pixels), "resized_sizes_hw": torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
                "photo_sizes_hw": torch.tensor(list(photo_sizes_hw), dtype=torch.int64).reshape(-1, 2)}

    def resized_size_hw(self, height: int, width: int) -> tuple[int, int]:
        """Size after the longest side became S; never below one pixel."""
        scale = self.image_size / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def image_token_mask(self, resized_size_hw: tuple[int, int]) -> list[int]:
        """1 for each of the I image tokens that sees a part of the photo, 0 for those that see padding only."""
        cell = self.image_size // self.image_tokens_per_side
        height, width = resized_size_hw
        side = range(self.image_tokens_per_side)
        return [int(cell * row < height and cell * column < width) for row in side for column in side]

    def to_mask_grid(self, mask: np.ndarray) -> np.ndarray:
        """Share of each cell of the M x M grid that a photo mask (H, W) bool covers; float32 in [0, 1], exact area average to 1/255."""
        height, width = mask.shape
        resized_height, resized_width = self.resized_size_hw(height, width)
        cell = self.image_size / self.mask_size
        rows, columns = math.ceil(resized_height / cell), math.ceil(resized_width / cell)
        box_height, box_width = rows * cell * height / resized_height, columns * cell * width / resized_width  # in photo pixels
        canvas = np.zeros((math.ceil(box_height), math.ceil(box_width)), np.uint8)
        canvas[:height, :width] = mask * np.uint8(255)
        grid = np.zeros((self.mask_size, self.mask_size), np.float32)
        covered = Image.fromarray(canvas).resize((columns, rows), Image.Resampling.BOX, box=(0, 0, box_width, box_height))
        grid[:rows, :columns] = np.asarray(covered, np.float32) / 255
        return grid

    def to_photo_masks(self, mask_logits: Tensor, resized_size_hw: tuple[int, int], photo_size_hw: tuple[int, int]) -> Tensor:
        """Mask logits (K, M, M) of one photo -> logits (K, H, W) at its own size; a pixel is on where the logit is above 0."""
        return resize_to_photo(mask_logits, self.image_size, resized_size_hw, photo_size_hw)


@dataclass(frozen=True)
class TrainingConversation:
    """One question about photo `photo_index`, its answer with one `{seg}` per target, and each target's mask (H, W) bool.

    `ignore_mask` (H, W) bool marks pixels that count neither as target nor as background.
    """

    photo_index: int
    question: str
    answer: str
    target_masks: list[np.ndarray] = field(default_factory=list)
    ignore_mask: np.ndarray | None = None


@dataclass(frozen=True)
class ParsedAnswer:
    """A generated answer: plain `text`; `template`, the same with `{seg}` after each phrase; `spans` of the phrases (code points)."""

    text: str
    template: str
    spans: list[tuple[int, int]]


class PixelLMProcessor(ProcessorMixin):
    """Image processor and tokenizer together; prompts come from the tokenizer's chat template."""

    def __init__(self, image_processor: PixelLMImageProcessor, tokenizer, image_token: str = "<image>", codebook_tokens: Sequence[str] = (),
                 max_length: int = 2048, chat_template: str | None = None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.codebook_tokens, self.max_length = image_token, list(codebook_tokens), max_length
        self._markers: tuple[tuple[object, int], re.Pattern[str]] | None = None  # with the template and size that they were found for

    @property
    def num_image_tokens(self) -> int:
        """I."""
        return self.image_processor.image_tokens_per_side**2

    def prompt_ids(self, question: str, history: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The ids that generation starts from: the whole prompt, the image placeholder expanded to I tokens.

        `history`: what was said before about the photo, questions with their answers, which have `{seg}` after each phrase. The photo
        stands in the first question.
        """
        first, *later = [*(asked for asked, _ in history), question]
        turns = [self._user_turn(first)]
        for (_, answer), asked in zip(history, later, strict=True):
            said = self._without_markers(answer).replace(SEG, "".join(self.codebook_tokens))
            turns += [{"role": "assistant", "content": said}, {"role": "user", "content": self._to_question(asked)}]
        return self._encode_prompt(self._render(turns, add_generation_prompt=True))

    def conversation_ids(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids and labels of a whole conversation; the prompt part equals `prompt_ids` and its labels are -100.

        Raises ModelError when it is longer than `max_length`: a conversation is never cut.
        """
        turns = [self._user_turn(question)]
        prompt = self._render(turns, add_generation_prompt=True)
        whole = self._render([*turns, {"role": "assistant", "content": self._without_markers(answer)}], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ModelError("the chat template renders a prompt that is not the beginning of the whole conversation")
        prompt_ids, rendered_answer = self._encode_prompt(prompt), whole[len(prompt):].replace(SEG, "".join(self.codebook_tokens))
        ids = self._encode_prompt(prompt + rendered_answer)  # together: some tokenizers put a space before every text
        if ids[:len(prompt_ids)] != prompt_ids:  # an answer that begins with a group, which eats the white space before it
            ids = prompt_ids + self._tokenize(rendered_answer)
        if len(ids) > self.max_length:
            raise ModelError(f"the conversation takes {len(ids)} tokens, the model allows {self.max_length}; "
                             "shorten the question or the answer")
        return ids, [IGNORED_LABEL] * len(prompt_ids) + ids[len(prompt_ids):]

    def collate(self, photos: Sequence[Image.Image], conversations: Sequence[TrainingConversation],
                mask_resolution: MaskResolution = "decoder") -> dict[str, Tensor]:
        """A training batch of Q conversations about B photos.

        Returns pixel_values (B, 3, S, S) float32, resized_sizes_hw and photo_sizes_hw (B, 2), photo_index (Q,), input_ids, attention_mask
        and labels (Q, T), target_masks and target_valid (K, M, M) float32, target_conversation (K,), all indices int64; targets in the
        order of their groups. With `mask_resolution` `photo`, targets are (K, H, W) of the largest photo, not valid beyond their own.
        """
        return unpack_batch(self.collate_packed([upright_rgb(photo) for photo in photos], conversations, mask_resolution))

    def collate_packed(self, photos: Sequence[Image.Image], conversations: Sequence[TrainingConversation],
                       mask_resolution: MaskResolution = "decoder", photo_sizes_hw: Sequence[tuple[int, int]] | None = None
                       ) -> dict[str, Tensor]:
        """The same batch, of upright RGB photos, as it travels: `unpack_batch` makes of it what `collate` returns.

        Instead of pixel_values it holds pixels (B, S, S, 3), and target_masks and target_valid are of 0 to 255, all uint8; pixel_mean and
        pixel_std (3,) float32 of RGB in [0, 1]. `photo_sizes_hw`: see `PixelLMImageProcessor.to_pixels`.
        """
        images = self.image_processor.to_pixels(photos, photo_sizes_hw)
        encoded = []
        for conversation in conversations:
            self._check_masks(conversation, tuple(images["photo_sizes_hw"][conversation.photo_index].tolist()))
            if conversation.answer.count(SEG) != len(conversation.target_masks):
                raise ModelError(f"found {conversation.answer.count(SEG)} {SEG} in the answer but "
                                 f"{len(conversation.target_masks)} target masks")
            encoded.append(self.conversation_ids(conversation.question, conversation.answer))
        photo_index = torch.tensor([conversation.photo_index for conversation in conversations], dtype=torch.int64)
        sizes = [tuple(images["resized_sizes_hw"][i].tolist()) for i in photo_index.tolist()]
        input_ids, attention_mask = self._pad([ids for ids, _ in encoded], sizes)
        labels = torch.full_like(input_ids, IGNORED_LABEL)
        for row, (_, values) in enumerate(encoded):
            labels[row, :len(values)] = torch.tensor(values)
        to_grid = self.image_processor.to_mask_grid if mask_resolution == "decoder" else np.asarray
        masks: list[Tensor] = []
        valid: list[Tensor] = []
        owners: list[int] = []
        for row, conversation in enumerate(conversations):
            if not conversation.target_masks:
                continue
            seen = np.ones_like(conversation.target_masks[0]) if conversation.ignore_mask is None else ~conversation.ignore_mask
            valid += [pack_mask(to_grid(seen))] * len(conversation.target_masks)
            masks += [pack_mask(to_grid(mask)) for mask in conversation.target_masks]
            owners += [row] * len(conversation.target_masks)
        none = torch.zeros(0, self.image_processor.mask_size, self.image_processor.mask_size, dtype=torch.uint8)
        return {
            **images, "pixel_mean": torch.tensor(self.image_processor.image_mean),
            "pixel_std": torch.tensor(self.image_processor.image_std), "photo_index": photo_index,
            "input_ids": input_ids, "attention_mask": attention_mask, "labels": labels,
            "target_masks": pad_to_largest(masks) if masks else none, "target_valid": pad_to_largest(valid) if valid else none,
            "target_conversation": torch.tensor(owners, dtype=torch.int64)}

    def parse_answer(self, ids: Sequence[int]) -> ParsedAnswer:
        """Generated ids (whole codebook groups) -> text, template and the span of each target's phrase."""
        codebook_ids = self.tokenizer.convert_tokens_to_ids(self.codebook_tokens)
        words: list[int] = []
        ends = []
        for token in ids:
            if token == codebook_ids[0]:
                ends.append(len(self.tokenizer.decode(words, skip_special_tokens=True).rstrip()))
            elif token not in codebook_ids:
                words.append(token)
        decoded = self.tokenizer.decode(words, skip_special_tokens=True).rstrip()
        decoded_text = decoded.lstrip()
        ends = [max(0, end - (len(decoded) - len(decoded_text))) for end in ends]
        segments = [decoded_text[start:end] for start, end in pairwise([0, *ends, len(decoded_text)])]
        # Tokenizers that put a space before every text put one between a group and the full stop after it.
        segments[1:] = [re.sub(r"^ (?=[.,;:!?)])", "", segment) for segment in segments[1:]]
        text = template = ""
        spans: list[tuple[int, int]] = []
        for segment in segments[:-1]:
            start = len(text) + phrase_start(segment)
            text += segment
            template += segment + (f" {SEG}" if text else SEG)
            spans.append((start, len(text)) if start < len(text) else (spans[-1] if spans else (0, 0)))
        return ParsedAnswer(text=text + segments[-1], template=template + segments[-1], spans=spans)

    @staticmethod
    def _check_masks(conversation: TrainingConversation, photo_size_hw: tuple[int, ...]) -> None:
        given = conversation.target_masks + ([] if conversation.ignore_mask is None else [conversation.ignore_mask])
        for mask in given:
            if mask.shape != photo_size_hw:
                raise ModelError(f"a mask of {mask.shape} (h, w) for an upright photo of {photo_size_hw}; masks belong to the photo as "
                                 "people see it, after its EXIF orientation")

    def _user_turn(self, question: str) -> dict[str, str]:
        return {"role": "user", "content": f"{self.image_token}\n{self._to_question(question)}"}

    def _to_question(self, text: str) -> str:
        """A question as it is trained and asked: on one line, since some templates end a turn with a line, with one space between words."""
        return " ".join(self._without_markers(text).split())

    def _without_markers(self, text: str) -> str:
        """A person's words must not become placeholders, codebook tokens or turns."""
        tokenizer = self.tokenizer
        known = tokenizer.chat_template, len(tokenizer)
        if self._markers is None or self._markers[0] != known:
            tokens = {self.image_token, *self.codebook_tokens, *tokenizer.all_special_tokens}
            tokens |= {str(token) for token in tokenizer.added_tokens_decoder.values()}
            self._markers = known, find_markers(lambda turns: self._render(turns, add_generation_prompt=True), tokens)
        return without_markers(text, self._markers[1])

    def _render(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_prompt(self, prompt: str) -> list[int]:
        return self._tokenize(prompt.replace(self.image_token, self.image_token * self.num_image_tokens))

    def _pad(self, rows: Sequence[list[int]], resized_sizes_hw: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        longest = max((len(ids) for ids in rows), default=0)
        image_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        input_ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for row, (ids, size_hw) in enumerate(zip(rows, resized_sizes_hw, strict=True)):
            tokens = torch.tensor(ids)
            seen = torch.ones_like(tokens)
            seen[tokens == image_id] = torch.tensor(self.image_processor.image_token_mask(size_hw))
            input_ids[row, :len(ids)], attention_mask[row, :len(ids)] = tokens, seen
        return input_ids, attention_mask


def resize_to_photo(mask_logits: Tensor, image_size: int, resized_size_hw: Sequence[int], photo_size_hw: Sequence[int]) -> Tensor:
    """Mask logits (K, M, M) of a photo padded to `image_size` S -> float32 (K, H, W): bilinear to S, without the padding, to its size."""
    height, width = resized_size_hw
    padded = F.interpolate(mask_logits.float().unsqueeze(1), (image_size, image_size), mode="bilinear", align_corners=False)
    return F.interpolate(padded[:, :, :height, :width], tuple(photo_size_hw), mode="bilinear", align_corners=False).squeeze(1)


def resize_to_photos(mask_logits: Tensor, image_size: int, resized_sizes_hw: Tensor, photo_sizes_hw: Tensor) -> Tensor:
    """The same for K targets of photos of different sizes (K, 2): (K, H, W) of the largest, 0 right of and below each photo."""
    if not len(mask_logits):
        return mask_logits.float()
    sizes = zip(mask_logits, resized_sizes_hw.tolist(), photo_sizes_hw.tolist(), strict=True)
    return pad_to_largest([resize_to_photo(logits[None], image_size, resized, photo)[0] for logits, resized, photo in sizes])


def pad_to_largest(masks: Sequence[Tensor]) -> Tensor:
    """Masks (H_k, W_k) -> (K, H, W), with zeros right and below."""
    height, width = (max(mask.shape[axis] for mask in masks) for axis in (0, 1))
    return torch.stack([F.pad(mask, (0, width - mask.shape[1], 0, height - mask.shape[0])) for mask in masks])


def phrase_start(words: str) -> int:
    """Where the noun phrase at the end of `words` begins: its last determiner, else what follows the last separator."""
    matches = list(re.finditer(r"\b(?:the|an?|every|each|this|that|these|those|his|her|their|its|your)\b", words, re.IGNORECASE))
    if matches:
        return matches[-1].start()
    separators = list(re.finditer(r"[,;:.!?]|\b(?:and|or)\b", words))
    start = separators[-1].end() if separators else 0
    return start + len(words[start:]) - len(words[start:].lstrip())


def parse_template(template: str) -> tuple[str, list[tuple[int, int]]]:
    """An answer with `{seg}` after each phrase -> its plain text, and the span of each `{seg}`'s phrase in code points of that text."""
    text = ""
    spans: list[tuple[int, int]] = []
    *parts, rest = template.replace(f" {SEG}", SEG).split(SEG)
    for part in parts:
        start = len(text) + phrase_start(part)
        text += part
        spans.append((start, len(text)) if start < len(text) else (spans[-1] if spans else (0, 0)))
    return text + rest, spans
