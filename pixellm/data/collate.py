"""Rows to micro-batches: decode the photo, draw the conversations, build the masks, and let the processor make tensors of them.

What cannot be used (a photo that does not decode, a conversation longer than the model allows) is set aside with its reason and counted;
training goes on until the share of such rows is above the configured one.
"""

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from pixellm.data.prompts import fill_conversation
from pixellm.data.schema import Conversation, Row, region_rle
from pixellm.data.stream import StreamedRow
from pixellm.errors import ModelError, RowError, TooManyRejectedError
from pixellm.masks import rle_to_mask, union_rles
from pixellm.model.processing_pixellm import IGNORED_LABEL, MaskResolution, TrainingConversation
from pixellm.photos import upright_rgb

MIN_ROWS_JUDGED = 100


class Processor(Protocol):
    """What collating needs of PixelLMProcessor."""

    def collate(self, photos: list[Image.Image], conversations: list[TrainingConversation],
                mask_resolution: MaskResolution) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class SetAside:
    """A row, or one conversation of it, that was not trained on. `reason` is a stable slug."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class MicroBatch:
    """Tensors for one forward pass, the (epoch, key) of each row that went into it or was set aside on the way, and what was set aside."""

    tensors: dict[str, Tensor]
    consumed: list[tuple[int, str]]
    set_aside: list[SetAside] = field(default_factory=list)

    @property
    def num_photos(self) -> int:
        """B."""
        return len(self.tensors["pixel_values"])

    @property
    def num_answer_tokens(self) -> int:
        """Tokens that the text loss is summed over."""
        return int((self.tensors["labels"][:, 1:] != IGNORED_LABEL).sum())

    @property
    def num_masks(self) -> int:
        """K."""
        return len(self.tensors["target_masks"])

    @property
    def num_tokens(self) -> int:
        """Tokens that the language model sees, padding left out."""
        return int(self.tensors["attention_mask"].sum())


@dataclass(frozen=True)
class Example:
    """One photo, upright RGB, with the conversations drawn for this visit (`photo_index` 0)."""

    key: str
    photo: Image.Image
    conversations: list[TrainingConversation]


class Collator:
    """Groups streamed rows into micro-batches of `num_photos`. Conversations are drawn by (seed, epoch, key), so a rerun draws the same."""

    def __init__(self, processor: Processor, num_photos: int, max_conversations: int, seed: int, max_rejected_share: float,
                 mask_resolution: MaskResolution = "decoder"):
        self.processor, self.num_photos, self.max_conversations = processor, num_photos, max_conversations
        self.seed, self.max_rejected_share, self.mask_resolution = seed, max_rejected_share, mask_resolution
        self._num_rows = self._num_set_aside = 0

    def batches(self, rows: Iterable[StreamedRow]) -> Iterator[MicroBatch]:
        """Micro-batches while `rows` lasts; a last incomplete one is dropped. Raises TooManyRejectedError."""
        examples: list[Example] = []
        consumed: list[tuple[int, str]] = []
        set_aside: list[SetAside] = []
        for streamed in rows:
            self._num_rows += 1
            consumed.append((streamed.epoch, streamed.key))
            try:
                examples.append(self.build_example(streamed))
            except RowError as error:
                self._set_aside(set_aside, SetAside(streamed.key, error.reason, error.detail))
            if len(examples) < self.num_photos:
                continue
            tensors, unusable = self.collate(examples)
            for each in unusable:
                self._set_aside(set_aside, each)
            examples = []
            if tensors is not None:
                yield MicroBatch(tensors, consumed, set_aside)
                consumed, set_aside = [], []

    def build_example(self, streamed: StreamedRow) -> Example:
        """Decode the photo and draw up to `max_conversations` of its conversations. Raises RowError."""
        row = streamed.row
        photo = _decode_photo(row)
        seed_key = (self.seed, streamed.epoch, streamed.key)
        total = len(row["conversations"])
        rng = np.random.default_rng(zlib.crc32(repr(seed_key).encode()))
        chosen = sorted(rng.permutation(total)[:self.max_conversations].tolist())
        if not chosen:
            raise RowError("no_conversation", "a row has at least one conversation")
        ignored = [region_rle(region) for region in row["regions"] if region["ignore"]]
        ignore_mask = rle_to_mask(union_rles(ignored, (row["height"], row["width"]))) if ignored else None
        return Example(streamed.key, photo, [
            self._build_conversation(row, row["conversations"][i], ignore_mask, (*seed_key, i)) for i in chosen])

    def collate(self, examples: list[Example]) -> tuple[dict[str, Tensor] | None, list[SetAside]]:
        """Tensors of all conversations that the processor takes, None when it takes none, and those that it refused (too long)."""
        try:
            return self._to_tensors(examples), []
        except ModelError:
            usable, set_aside = [], []
            for example in examples:
                taken = []
                for conversation in example.conversations:
                    try:
                        self.processor.collate([example.photo], [conversation], self.mask_resolution)
                        taken.append(conversation)
                    except ModelError as error:
                        set_aside.append(SetAside(example.key, "conversation_unusable", str(error)))
                if taken:
                    usable.append(replace(example, conversations=taken))
            return (self._to_tensors(usable) if usable else None), set_aside

    def _to_tensors(self, examples: list[Example]) -> dict[str, Tensor]:
        conversations = [replace(each, photo_index=i) for i, example in enumerate(examples) for each in example.conversations]
        return self.processor.collate([example.photo for example in examples], conversations, self.mask_resolution)

    def _build_conversation(self, row: Row, conversation: Conversation, ignore_mask: np.ndarray | None,
                            seed_key: tuple) -> TrainingConversation:
        regions, size_hw = row["regions"], (row["height"], row["width"])
        question, answer = fill_conversation(conversation, regions, seed_key)
        try:
            masks = [rle_to_mask(union_rles([region_rle(regions[i]) for i in target], size_hw)) for target in conversation["targets"]]
        except IndexError:
            raise RowError("target_index", f"targets {conversation['targets']} point beyond {len(regions)} regions") from None
        return TrainingConversation(0, question, answer, masks, ignore_mask)

    def _set_aside(self, so_far: list[SetAside], new: SetAside) -> None:
        so_far.append(new)
        self._num_set_aside += 1
        if self._num_set_aside > self.max_rejected_share * max(self._num_rows, MIN_ROWS_JUDGED):
            raise TooManyRejectedError(
                f"{self._num_set_aside} of {self._num_rows} rows could not be used, max_rejected_share is {self.max_rejected_share}; "
                f"the last one, {new.key}: {new.reason}: {new.detail}")


def _decode_photo(row: Row) -> Image.Image:
    try:
        photo = upright_rgb(Image.open(io.BytesIO(row["image"])))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RowError("photo_unreadable", str(error) or type(error).__name__) from None
    if (photo.height, photo.width) != (row["height"], row["width"]):
        raise RowError("size_mismatch", f"the upright photo is {photo.height}x{photo.width}, the row says {row['height']}x{row['width']}")
    return photo
