"""Placeholder with the agreed interface; the one with bounded memory replaces it."""

from dataclasses import dataclass

from torch import Tensor

from pixellm.masks import RLE, mask_to_rle, rle_area, rle_box_xywh
from pixellm.model.processing_pixellm import PixelLMImageProcessor


@dataclass(frozen=True)
class EncodedMask:
    rle: RLE
    score: float
    box_xywh: list[int]
    area: int


def encode_mask(mask_logits: Tensor, image_processor: PixelLMImageProcessor, resized_size_hw: tuple[int, int],
                photo_size_hw: tuple[int, int]) -> EncodedMask:
    photo_logits = image_processor.to_photo_masks(mask_logits[None], resized_size_hw, photo_size_hw)[0]
    mask = photo_logits > 0
    score = float((photo_logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6))
    rle = mask_to_rle(mask.numpy())
    return EncodedMask(rle, score, rle_box_xywh(rle), rle_area(rle))
