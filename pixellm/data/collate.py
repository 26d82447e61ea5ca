"""Rows to micro-batches: decode the photo, draw the conversations, build the masks, and let the processor make tensors of them.

Runs in Ray Data tasks. What cannot be used (a photo that does not decode, a conversation longer than the model allows) is set aside with
its reason and counted; training goes on until the share of such rows is above the configured one.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pixellm.data.prompts import fill_conversation
from pixellm.data.schema import TASKS, Row, photo_set_aside, region_rle
from pixellm.data.spans import StreamedRow
from pixellm.errors import ModelError, RowError, TooManyRejectedError
from pixellm.masks import rle_to_mask, union_rles
from pixellm.model.processing_pixellm import IGNORED_LABEL, MaskResolution, PixelLMImageProcessor, TrainingConversation
from pixellm.photos import decode_photo

MIN_ROWS_JUDGED = 100


class Processor(Protocol):
    """What collating needs of PixelLMProcessor."""

    image_processor: PixelLMImageProcessor

    def collate_packed(self, photos: list[Image.Image], conversations: list[TrainingConversation], mask_resolution: MaskResolution,
                       photo_sizes_hw: list[tuple[int, int]]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class SetAside:
    """A row, or one conversation of it, that was not trained on. `reason` is a stable slug."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class MicroBatch:
    """Tensors for one forward pass, packed (`pixellm.model.packing`), and what was set aside on the way; `consumed` is the (epoch, key) of
    each row of either."""

    tensors: dict[str, Tensor]
    consumed: list[tuple[int, str]]
    set_aside: list[SetAside] = field(default_factory=list)

    @property
    def num_photos(self) -> int:
        """B."""
        return len(self.tensors["pixels"])

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that the text loss is summed over."""
        return int((self.tensors["labels"][:, 1:] != IGNORED_LABEL).sum())

    @property
    def num_masks(self) -> int:
        """K."""
        return len(self.tensors["target_masks"])

    @property
    def num_conversations(self) -> int:
        """Q."""
        return len(self.tensors["input_ids"])

    @property
    def num_tokens(self) -> int:
        """Tokens that the language model sees, padding left out."""
        return int(self.tensors["attention_mask"].sum())


@dataclass(frozen=True)
class Example:
    """One photo, upright RGB, with its size in full, the conversations drawn for this visit (`photo_index` 0), and their tasks in TASKS."""

    key: str
    photo: Image.Image
    photo_size_hw: tuple[int, int]
    conversations: list[TrainingConversation]
    tasks: list[int]


class Collator:
    """Makes rows into micro-batches. Conversations are drawn by (seed, epoch, key), so a rerun draws the same."""

    def __init__(self, processor: Processor, max_conversations: int, seed: int, mask_resolution: MaskResolution = "decoder"):
        self.processor, self.max_conversations, self.seed, self.mask_resolution = processor, max_conversations, seed, mask_resolution

    def length(self, streamed: StreamedRow) -> int:
        """Characters of the longest conversation, which the others are padded to; a text that is to be drawn counts 0."""
        return max((len(each["question"] or "") + len(each["answer"] or "") for each in streamed.row["conversations"]), default=0)

    def build(self, rows: list[StreamedRow]) -> MicroBatch:
        """A micro-batch of what can be used of `rows`. Where nothing can, of a blank photo that weighs nothing: the step goes on."""
        examples, set_aside = [], []
        for streamed in rows:
            try:
                examples.append(self.build_example(streamed))
            except RowError as error:
                set_aside.append(SetAside(streamed.key, error.reason, error.detail))
        tensors, unusable = self.collate(examples) if examples else (None, [])
        if tensors is None:
            tensors = self._to_tensors([Example("", Image.new("RGB", (1, 1)), (1, 1), [TrainingConversation(0, "?", ".")], [0])])
            tensors["labels"].fill_(IGNORED_LABEL)
        return MicroBatch(tensors, [(streamed.epoch, streamed.key) for streamed in rows], set_aside + unusable)

    def build_example(self, streamed: StreamedRow) -> Example:
        """Decode the photo and draw up to `max_conversations` of its conversations. Raises RowError."""
        row = streamed.row
        photo = _decode_photo(row, self.processor.image_processor.image_size)
        size_hw = (row["height"], row["width"])
        ignored = [region_rle(region) for region in row["regions"] if region["ignore"]]
        ignore_mask = rle_to_mask(union_rles(ignored, size_hw)) if ignored else None
        drawn = self._draw(streamed)
        return Example(streamed.key, photo, size_hw, [
            TrainingConversation(0, question, answer, self._masks(row, targets), ignore_mask)
            for question, answer, targets, _ in drawn], [TASKS.index(task) for *_, task in drawn])

    def _draw(self, streamed: StreamedRow) -> list[tuple[str, str, list[list[int]], str]]:
        """Question, answer, targets and task of up to `max_conversations`. Raises RowError."""
        conversations, seed_key = streamed.row["conversations"], (self.seed, streamed.epoch, streamed.key)
        rng = np.random.default_rng(zlib.crc32(repr(seed_key).encode()))
        chosen = sorted(rng.permutation(len(conversations))[:self.max_conversations].tolist())
        if not chosen:
            raise RowError("no_conversation", "a row has at least one conversation")
        regions = streamed.row["regions"]
        return [(*fill_conversation(conversations[i], regions, (*seed_key, i)), conversations[i]["targets"], conversations[i]["task"])
                for i in chosen]

    def collate(self, examples: list[Example]) -> tuple[dict[str, Tensor] | None, list[SetAside]]:
        """Tensors of all conversations that the processor takes, None when it takes none, and those that it refused (too long)."""
        try:
            return self._to_tensors(examples), []
        except ModelError:
            usable, set_aside = [], []
            for example in examples:
                taken, tasks = [], []
                for conversation, task in zip(example.conversations, example.tasks, strict=True):
                    try:
                        self._to_tensors([replace(example, conversations=[conversation], tasks=[task])])
                        taken.append(conversation)
                        tasks.append(task)
                    except ModelError as error:
                        set_aside.append(SetAside(example.key, "conversation_unusable", str(error)))
                if taken:
                    usable.append(replace(example, conversations=taken, tasks=tasks))
            return (self._to_tensors(usable) if usable else None), set_aside

    def _to_tensors(self, examples: list[Example]) -> dict[str, Tensor]:
        conversations = [replace(each, photo_index=i) for i, example in enumerate(examples) for each in example.conversations]
        tensors = self.processor.collate_packed([example.photo for example in examples], conversations, self.mask_resolution,
                                                [example.photo_size_hw for example in examples])
        return tensors | {"task_index": torch.tensor([task for example in examples for task in example.tasks])}

    def _masks(self, row: Row, targets: list[list[int]]) -> list[np.ndarray]:
        size_hw = (row["height"], row["width"])
        try:
            return [rle_to_mask(union_rles([region_rle(row["regions"][i]) for i in target], size_hw)) for target in targets]
        except IndexError:
            raise RowError("target_index", f"targets {targets} point beyond {len(row['regions'])} regions") from None


class SetAsideCounter:
    """Rows and conversations of a run that could not be used, against all rows, from the beginning of the run and of all its workers."""

    def __init__(self, max_share: float, num_rows: int = 0, num_set_aside: int = 0):
        self.max_share, self.num_rows, self.num_set_aside = max_share, num_rows, num_set_aside
        self._last: SetAside | None = None

    @property
    def state(self) -> dict[str, int]:
        """What a checkpoint keeps: arguments of a counter that goes on from here."""
        return {"num_rows": self.num_rows, "num_set_aside": self.num_set_aside}

    def add(self, num_rows: int, num_set_aside: int, seen: Sequence[SetAside]) -> None:
        """Count a step of all workers; `seen` is what this worker set aside. Raises TooManyRejectedError above `max_share`."""
        self.num_rows += num_rows
        self.num_set_aside += num_set_aside
        self._last = seen[-1] if seen else self._last
        if num_set_aside and self.num_set_aside > self.max_share * max(self.num_rows, MIN_ROWS_JUDGED):
            last = f"; the last one here, {self._last.key}: {self._last.reason}: {self._last.detail}" if self._last else ""
            raise TooManyRejectedError(
                f"{self.num_set_aside} of {self.num_rows} rows could not be used, max_rejected_share is {self.max_share}{last}")


def _decode_photo(row: Row, side: int) -> Image.Image:
    with photo_set_aside():
        photo, (height, width) = decode_photo(row["image"], side)
    if (height, width) != (row["height"], row["width"]):
        raise RowError("size_mismatch", f"the upright photo is {height}x{width}, the row says {row['height']}x{row['width']}")
    return photo
