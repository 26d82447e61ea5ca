"""Warm start of a small vision tower and its mask head, before a language model joins them.

Words take the place of codebook states: each word of a region's name has a learned prompt, and the sum of a name's words asks for its mask.
Names that share a word with something in the photo but are not there must get an empty mask, so that every word counts. Beside it a linear
layer reads from the deepest features which words each patch shows, as the language model will have to.
"""

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pixellm.data.manifest import read_manifest
from pixellm.data.prefetch import Prefetcher
from pixellm.data.schema import Region, region_rle
from pixellm.data.spans import StreamedRow, read_mixture
from pixellm.data.stream import BatchStream
from pixellm.errors import ShardError
from pixellm.masks import rle_to_mask, union_rles
from pixellm.model.losses import dice, refined_bce
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration
from pixellm.model.processing_pixellm import PixelLMImageProcessor
from pixellm.photos import load_photo
from pixellm.settings import Seed, StrictModel
from pixellm.storage import join_uri, open_filesystem
from pixellm.train.console import format_duration
from pixellm.train.step import learning_rate_factor
from pixellm.uris import Uri

BATCHES_AHEAD = 4
PATCH_WEIGHTS = (0.3, 2.0)  # of a patch that shows nothing named, and of one that is covered whole


class TowerConfig(StrictModel):
    """A warm start, on one node."""

    data: tuple[Uri, ...] = Field(min_length=1, description="shard folders: URIs")
    output: Uri = Field(description="URI of the model directory")
    steps: int = Field(gt=0)
    photos_per_step: int = Field(16, gt=0)
    masks_per_step: int = Field(32, gt=0, description="drawn from those of the photos")
    absent_per_photo: int = Field(1, ge=0, description="names that are not there, to be answered by an empty mask")
    learning_rate: float = Field(1.5e-3, gt=0)
    warmup_steps: int = Field(50, ge=0)
    decay: Literal["linear", "cosine"] = "linear"
    patch_weight: float = Field(1.0, ge=0, description="of the words of patches beside the masks")
    torch_threads: int = Field(2, gt=0)
    log_every_steps: int = Field(50, gt=0)
    seed: Seed = 0


@dataclass(frozen=True)
class TowerBatch:
    """B photos and K names, W words in all: `pixel_values` (B, 3, S, S), `resized_sizes_hw` (B, 2), `photo_of_name` (K,) int64,
    `words_of_name` (K, W) of 0 or 1, `masks` (K, M, M) in [0, 1], all zero where the name is absent, and `patch_words` (B, P, W), the share
    of each patch that things of each word cover."""

    pixel_values: Tensor
    resized_sizes_hw: Tensor
    photo_of_name: Tensor
    words_of_name: Tensor
    masks: Tensor
    patch_words: Tensor


def region_name(region: Region) -> str:
    """What a region is called here: its description, else its category."""
    return region["description"] or region["category"]


def read_names(uris: Iterable[str]) -> list[str]:
    """Every name in the shards, sorted; only the columns that hold names are read. Raises ShardError when there is none."""
    names: set[str] = set()
    for uri in uris:
        for shard in read_manifest(uri).shards:
            filesystem, path = open_filesystem(join_uri(uri, shard.name))
            columns = ["regions.list.element.description", "regions.list.element.category"]
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                for regions in file.read(columns)["regions"].to_pylist():
                    names |= {region_name(region) for region in regions}
    if not names:
        raise ShardError(f"the shards {', '.join(uris)} have no regions; a warm start needs some")
    return sorted(names)


class TowerCollator:
    """Rows to batches."""

    def __init__(self, images: PixelLMImageProcessor, patches_per_side: int, names: list[str], config: TowerConfig):
        self.images, self.patches_per_side, self.config = images, patches_per_side, config
        words = sorted({word for name in names for word in name.split()})
        self.num_words = len(words)
        self.words_of = {name: np.isin(words, name.split()).astype(np.float32) for name in names}

    def length(self, row: StreamedRow) -> int:
        """All rows are of one length: there is no text."""
        return 0

    def build(self, rows: list[StreamedRow]) -> TowerBatch | None:
        """The batch of those photos that something is named on, None where it is on none of them."""
        named = [row for row in rows if any(not region["ignore"] for region in row.row["regions"])]
        return self.collate(named) if named else None

    def collate(self, rows: list[StreamedRow]) -> TowerBatch:
        """One batch: the regions of one name are one mask; absent names are drawn from those that share a word with a present one."""
        rng = np.random.default_rng([self.config.seed, zlib.crc32(repr([(row.epoch, row.key) for row in rows]).encode())])
        photos = [load_photo(row.row["image"]) for row in rows]
        inputs = self.images.preprocess(photos)
        entries: list[tuple[int, str, np.ndarray]] = []
        patch_words = np.zeros((len(rows), self.patches_per_side**2, self.num_words), np.float32)
        cell = self.images.mask_size // self.patches_per_side
        for index, row in enumerate(rows):
            size_hw = (row.row["height"], row.row["width"])
            named: dict[str, list] = {}
            for region in row.row["regions"]:
                if not region["ignore"]:
                    named.setdefault(region_name(region), []).append(region_rle(region))
            for name, rles in named.items():
                mask = self.images.to_mask_grid(rle_to_mask(union_rles(rles, size_hw)))
                entries.append((index, name, mask))
                covered = mask.reshape(self.patches_per_side, cell, self.patches_per_side, cell).mean((1, 3)).reshape(-1, 1)
                patch_words[index] += covered * self.words_of[name]
            shown = np.sum([self.words_of[name] for name in named], axis=0)
            near = [name for name in self.words_of if name not in named and (self.words_of[name] * shown).any()]
            for place in rng.permutation(len(near))[:self.config.absent_per_photo]:
                entries.append((index, near[place], np.zeros((self.images.mask_size,) * 2, np.float32)))
        drawn = [entries[i] for i in sorted(rng.permutation(len(entries))[:self.config.masks_per_step])]
        return TowerBatch(
            inputs["pixel_values"], inputs["resized_sizes_hw"], torch.tensor([photo for photo, _, _ in drawn]),
            torch.from_numpy(np.stack([self.words_of[name] for _, name, _ in drawn])),
            torch.from_numpy(np.stack([mask for _, _, mask in drawn])), torch.from_numpy(patch_words).clamp(max=1))


class WordPrompts(nn.Module):
    """What stands in for the language model: a prompt (L*N, D) per word, and the linear layer that reads words from patches."""

    def __init__(self, num_words: int, num_codebook_tokens: int, text_size: int, vision_size: int):
        super().__init__()
        self.states = nn.Parameter(torch.randn(num_words, num_codebook_tokens * text_size) * 0.5)
        self.reader = nn.Linear(vision_size, num_words)
        self.num_codebook_tokens = num_codebook_tokens

    def forward(self, words_of_name: Tensor) -> Tensor:
        """(K, W) -> states (K, L*N, D)."""
        return (words_of_name @ self.states).unflatten(1, (self.num_codebook_tokens, -1))


def tower_losses(model: PixelLMForConditionalGeneration, prompts: WordPrompts, batch: TowerBatch) -> dict[str, Tensor]:
    """Scalars `bce` and `dice` (of names that are there) per mask, and `patch`, the words' binary cross entropy per patch."""
    photos = model.encode_photos(batch.pixel_values, batch.resized_sizes_hw)
    logits, _ = model.mask_head(photos.scale_features, batch.photo_of_name, prompts(batch.words_of_name))
    logits, valid, names = logits.float(), torch.ones_like(batch.masks), torch.arange(len(batch.masks))
    is_there = batch.masks.flatten(1).any(1)
    read = prompts.reader(photos.scale_features[0]).float()
    patch = F.binary_cross_entropy_with_logits(read, batch.patch_words, reduction="none").sum(-1)
    low, high = PATCH_WEIGHTS
    weight = low + (high - low) * batch.patch_words.amax(-1)
    return {"bce": refined_bce(logits, batch.masks, valid, names, alpha=1.0).mean(),
            "dice": dice(logits, batch.masks, valid)[is_there].sum() / is_there.sum().clamp(min=1), "patch": (patch * weight).mean()}


def warm_start(model: PixelLMForConditionalGeneration, images: PixelLMImageProcessor, config: TowerConfig,
               say: Callable[[str], None]) -> None:
    """Trains tower and mask head in place, in bf16 with float32 weights. A Ray cluster must be connected: it reads the shards."""
    torch.set_num_threads(config.torch_threads)
    torch.manual_seed(config.seed)
    names = read_names(config.data)
    collator = TowerCollator(images, model.config.patches_per_side, names, config)
    architecture = model.config
    prompts = WordPrompts(collator.num_words, len(architecture.codebook_token_ids), architecture.text_config.hidden_size,
                          architecture.vision_config.hidden_size)
    parameters = [*model.vision_tower.parameters(), *model.mask_head.parameters(), *prompts.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    mixture = read_mixture(((uri, None) for uri in config.data), config.seed, num_lanes=1)
    stream = BatchStream(mixture, [0], mixture.start(config.photos_per_step), collator)
    prefetcher = Prefetcher((batch for batch in stream if batch is not None), depth=BATCHES_AHEAD)
    say(f"warm start: {len(names)} names of {collator.num_words} words, {sum(p.numel() for p in parameters):,} parameters")
    started, logged = time.monotonic(), []
    model.train()
    try:
        for step, batch in zip(range(1, config.steps + 1), prefetcher, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step - 1, config)
            with torch.autocast("cpu", torch.bfloat16):
                losses = tower_losses(model, prompts, batch)
            optimizer.zero_grad()
            (2 * losses["bce"] + 2 * losses["dice"] + config.patch_weight * losses["patch"]).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            logged.append([float(value.detach()) for value in losses.values()])
            if step % config.log_every_steps == 0 or step == config.steps:
                shown = "  ".join(f"{name} {value:.3f}" for name, value in zip(losses, np.mean(logged, 0), strict=True))
                left_s = (time.monotonic() - started) / step * (config.steps - step)
                say(f"step {step}/{config.steps}  {shown}  {format_duration(left_s)} left")
                logged = []
    finally:
        prefetcher.close()
