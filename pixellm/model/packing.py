"""A training batch as it travels, in bytes, and as the model takes it, in float32: a quarter of the memory on the way, the same numbers.

Letters: B photos, S side of the padded photo, K targets, M side of a mask.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

MASK_LEVELS = 255  # a mask's value v travels as the byte of 255 v
PACKED_MASKS = ("target_masks", "target_valid")


def normalise_pixels(pixels: Tensor, resized_sizes_hw: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """RGB bytes (B, S, S, 3) -> (B, 3, S, S) float32 on their device: (x / 255 - mean) / std, and 0 beyond each photo's size.

    `resized_sizes_hw` (B, 2) int64 on the CPU; `mean` and `std` are of RGB in [0, 1]. Photo by photo: so a CPU works in its cache.
    """
    batch, side = pixels.shape[:2]
    values = torch.zeros(batch, 3, side, side, device=pixels.device)
    mean, std = (torch.as_tensor(each, dtype=torch.float32, device=pixels.device)[:, None, None] for each in (mean, std))
    for value, photo, (height, width) in zip(values, pixels, resized_sizes_hw.tolist(), strict=True):
        value[:, :height, :width].copy_(photo[:height, :width].permute(2, 0, 1)).div_(255).sub_(mean).div_(std)
    return values


def pack_mask(mask: np.ndarray) -> Tensor:
    """A mask, bool or float32 in [0, 1] in steps of 1/255, as bytes."""
    return torch.from_numpy(mask.astype(np.uint8) * np.uint8(MASK_LEVELS) if mask.dtype == bool
                            else np.rint(mask * MASK_LEVELS).astype(np.uint8))


def unpack_batch(packed: Mapping[str, Tensor], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """What `PixelLMProcessor.collate_packed` made, as `collate` describes it, on `device`: bytes travel there, and become floats there."""
    tensors = {name: value.to(device, non_blocking=True) for name, value in packed.items()}
    pixels, mean, std = (tensors.pop(name) for name in ("pixels", "pixel_mean", "pixel_std"))
    masks = {name: tensors[name].float().div_(MASK_LEVELS) for name in PACKED_MASKS}
    return tensors | masks | {"pixel_values": normalise_pixels(pixels, packed["resized_sizes_hw"], mean, std)}
