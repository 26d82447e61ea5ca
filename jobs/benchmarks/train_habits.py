"""What the released code's habits cost, each against the same step without it: on the bare model, batches ready in memory.

The vision tower once for each question instead of once for each photo; losses at the photo's resolution instead of the decoder's; a second,
1024-pixel copy of each photo, prepared for a tower that the model does not have.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from jobs.benchmarks.result import Case
from jobs.benchmarks.timing import time_interleaved
from pixellm.data.sources import shapes_questions
from pixellm.model.packing import unpack_batch
from pixellm.model.presets import build_tiny
from pixellm.model.processing_pixellm import MaskResolution, PixelLMProcessor, TrainingConversation
from pixellm.train.config import TrainConfig
from pixellm.train.forward import forward_losses, weighted_loss

PHOTO_SIZE_HW = (480, 640)
QUESTIONS_PER_PHOTO, TARGETS = 3, 2
UNUSED_SIDE = 1024  # of the released code's input for SAM
PLAIN, PER_QUESTION, AT_PHOTO = "step", "step, tower once per question", "step, losses at 640 x 480"
PREPARE, PREPARE_UNUSED = "preparing", "preparing, with unused 1024-px copies"


def measure_habits(num_photos: int, repeats: int) -> dict[str, Case]:
    """Seconds by name: of a forward and backward pass of `tiny` over `num_photos`, and of preparing them."""
    model, processor = build_tiny(shapes_questions.all_texts())
    model.train()
    photos = [_draw_photo(number) for number in range(num_photos)]
    plain, at_photo = (_collate(processor, photos, resolution) for resolution in ("decoder", "photo"))
    index = plain["photo_index"]
    per_question = plain | {name: plain[name][index] for name in ("pixel_values", "resized_sizes_hw", "photo_sizes_hw")}
    per_question["photo_index"] = torch.arange(len(index))

    def step(tensors: dict[str, torch.Tensor], resolution: MaskResolution) -> Callable[[], None]:
        config = TrainConfig.model_validate({"run": "habits", "storage": ".", "data": ["none"], "steps": 1, "precision": "fp32",
                                             "mask_loss_resolution": resolution})

        def run() -> None:
            weighted_loss(forward_losses(model, tensors, config), config.loss_weights, 1, 1).backward()
            model.zero_grad()

        return run

    functions: dict[str, Callable[[], object]] = {
        PLAIN: step(plain, "decoder"), PER_QUESTION: step(per_question, "decoder"), AT_PHOTO: step(at_photo, "photo"),
        PREPARE: lambda: _collate(processor, photos, "decoder"),
        PREPARE_UNUSED: lambda: (_collate(processor, photos, "decoder"), [_unused_input(photo) for photo in photos])}
    return time_interleaved(functions, repeats)


def _draw_photo(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    return Image.fromarray(small).resize(PHOTO_SIZE_HW[::-1], Image.Resampling.BICUBIC)


def _collate(processor: PixelLMProcessor, photos: list[Image.Image], resolution: MaskResolution) -> dict[str, torch.Tensor]:
    mask = np.zeros(PHOTO_SIZE_HW, bool)
    mask[100:300, 150:400] = True
    answer = "The red circle {seg}" + " and the blue ring {seg}" * (TARGETS - 1) + "."
    conversations = [TrainingConversation(number, "Which of these can roll?", answer, [mask] * TARGETS)
                     for number in range(len(photos)) for _ in range(QUESTIONS_PER_PHOTO)]
    return unpack_batch(processor.collate_packed(photos, conversations, resolution, [PHOTO_SIZE_HW] * len(photos)))


def _unused_input(photo: Image.Image) -> torch.Tensor:
    """(3, 1024, 1024) float32, as the released code makes it: longest side to 1024, normalised, padded."""
    scale = UNUSED_SIDE / max(photo.size)
    resized = np.asarray(photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized.copy()).permute(2, 0, 1).float()
    pixels = (pixels - torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    return torch.nn.functional.pad(pixels, (0, UNUSED_SIDE - pixels.shape[2], 0, UNUSED_SIDE - pixels.shape[1]))
