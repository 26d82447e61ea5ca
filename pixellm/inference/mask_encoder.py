"""One target's mask logits -> its mask at the photo's size, as RLE with score, box and area. No full-size map of floats is ever made.

The numbers are those of the processor's `to_photo_masks`: bilinear to the padded square, cropped to the photo's part of it, bilinear to the
photo. Bilinear resizing never leaves the range of the values it mixes, so the mask is looked for only where the square has a positive one.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from pixellm.masks import RLE, crop_to_rle, rle_area, rle_box_xywh
from pixellm.model.processing_pixellm import PixelLMImageProcessor

BAND_PIXELS = 1 << 18  # of photo logits at a time, 1 MB: fits a core's own cache


@dataclass(frozen=True)
class EncodedMask:
    """A mask at its photo's size. `score` is the mean probability inside it; an empty mask has score 0 and box [0, 0, 0, 0]."""

    rle: RLE
    score: float
    box_xywh: list[int]
    area: int


@dataclass(frozen=True)
class _Taps:
    """Bilinear resizing along one side: pixel `start + i` mixes source pixels `low[i]` and `high[i]`, the latter times `weight[i]`."""

    start: int
    low: Tensor
    high: Tensor
    weight: Tensor


@torch.inference_mode()
def encode_mask(mask_logits: Tensor, image_processor: PixelLMImageProcessor, resized_size_hw: tuple[int, int],
                photo_size_hw: tuple[int, int]) -> EncodedMask:
    """`mask_logits` (M, M) of a photo of `photo_size_hw` that the processor resized to `resized_size_hw`. On where the logit is above 0."""
    side = image_processor.image_size
    padded = F.interpolate(mask_logits.float().cpu()[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]
    square = padded[:resized_size_hw[0], :resized_size_hw[1]]
    positive = square > 0
    rows = _taps_of_on(positive.any(1), photo_size_hw[0])
    columns = _taps_of_on(positive.any(0), photo_size_hw[1])
    # Rows first, then transposed: each step mixes whole rows of memory, and the mask comes out column by column, as RLE wants it.
    stretched = torch.lerp(square[rows.low], square[rows.high], rows.weight[:, None]).t().contiguous()
    mask = torch.empty(len(columns.low), len(rows.low), dtype=torch.bool)
    probability = 0.0
    band = max(1, BAND_PIXELS // max(1, len(rows.low)))
    for start, stop in pairwise([*range(0, len(columns.low), band), len(columns.low)]):
        logits = torch.lerp(stretched[columns.low[start:stop]], stretched[columns.high[start:stop]], columns.weight[start:stop, None])
        torch.gt(logits, 0, out=mask[start:stop])
        probability += float(F.threshold(logits, 0, -torch.inf, inplace=True).sigmoid_().sum())
    rle = crop_to_rle(mask.numpy().T, (columns.start, rows.start), photo_size_hw)
    area = rle_area(rle)
    return EncodedMask(rle, probability / (area + 1e-6), rle_box_xywh(rle), area)


def _taps_of_on(on: Tensor, size: int) -> _Taps:
    """How to resize a side of `len(on)` source pixels to `size`, from the first to the last pixel that a source pixel which is on reaches.

    The same places and weights, in float32, as `F.interpolate(mode="bilinear", align_corners=False)`, for these pixels only.
    """
    lit = on.nonzero().flatten()
    first, last = (int(lit[0]), int(lit[-1])) if len(lit) else (0, -1)
    scale = size / len(on)
    start, stop = max(0, math.floor((first - 1) * scale) - 1), min(size, math.ceil((last + 2) * scale) + 1)  # a little more than they reach
    place = ((torch.arange(start, stop) + 0.5) * (len(on) / size) - 0.5).clamp(min=0)
    low = place.long().clamp(max=len(on) - 1)
    high = (low + 1).clamp(max=len(on) - 1)
    reached = (on[low] | on[high]).nonzero().flatten()
    part = slice(int(reached[0]), int(reached[-1]) + 1) if len(reached) else slice(0, 0)
    return _Taps(start + part.start, low[part], high[part], (place - low)[part])
