"""The pixels that annotations refer to, and how they lie on the upright photo."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pixellm.data.schema import PhotoInfo, Region, build_region, read_photo_info
from pixellm.errors import RowError
from pixellm.masks import RLE, mask_to_rle, rle_to_mask, segmentation_to_rle

_TO_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    5: lambda m: m.T, 6: lambda m: np.rot90(m, -1), 7: lambda m: m.T[::-1, ::-1], 8: np.rot90,
}


class PhotoFrame:
    """Turns polygons, RLEs and bitmaps of `annotated_hw` pixels into regions of the upright photo.

    Annotations of a photo that EXIF turns by a quarter may be on its stored pixels: their size tells. Raises RowError
    `photo_unreadable`, `photo_format`, `size_mismatch`.
    """

    def __init__(self, photo: bytes, annotated_hw: tuple[int, int]):
        info = read_photo_info(photo)
        self.annotated_hw, self.size_hw = annotated_hw, info.size_hw
        self._turn = _TO_UPRIGHT[info.orientation] if _needs_turn(annotated_hw, info) else None

    def region(self, segmentation: Any, category: str, description: str | None = None, ignore: bool = False) -> Region:
        """From polygons or either RLE kind. Raises RowError of `segmentation_to_rle`, `empty_mask`."""
        return build_region(self._to_upright(segmentation_to_rle(segmentation, self.annotated_hw)), category, description, ignore)

    def region_of_mask(self, mask: np.ndarray, category: str, description: str | None = None, ignore: bool = False) -> Region:
        """From a bool bitmap (h, w) of `annotated_hw`. Raises RowError `size_mismatch`, `empty_mask`."""
        if mask.shape != self.annotated_hw:
            raise RowError("size_mismatch", f"a mask of {mask.shape} (h, w) for annotations of {self.annotated_hw}")
        return build_region(mask_to_rle(self._turn(mask) if self._turn else mask), category, description, ignore)

    def _to_upright(self, rle: RLE) -> RLE:
        return mask_to_rle(self._turn(rle_to_mask(rle))) if self._turn else rle


def _needs_turn(annotated_hw: tuple[int, int], photo: PhotoInfo) -> bool:
    if annotated_hw == photo.size_hw:
        return False
    if annotated_hw == photo.stored_hw:
        return True
    raise RowError("size_mismatch", f"the photo is {photo.size_hw} (h, w), its annotations are for {annotated_hw}")
