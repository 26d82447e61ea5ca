"""The pixels that annotations refer to, and how they lie on the upright photo."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pixellm.data.schema import PhotoInfo, Region, build_region, read_photo_info
from pixellm.data.sources.agreement import (
    COORDINATES,
    MIN_BOX_IOU,
    AnnotationForm,
    Coordinates,
    agrees,
    closeness,
    looks_normalised,
    read_mask,
)
from pixellm.errors import RowError
from pixellm.masks import RLE, mask_to_rle, rle_area, rle_box_xywh, rle_to_mask

_TO_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda m: m, 2: lambda m: m[:, ::-1], 3: lambda m: m[::-1, ::-1], 4: lambda m: m[::-1],
    5: lambda m: m.T, 6: lambda m: np.rot90(m, -1), 7: lambda m: m.T[::-1, ::-1], 8: np.rot90,
}


class PhotoFrame:
    """Turns polygons, RLEs and bitmaps of `annotated_hw` pixels into regions of the upright photo.

    Annotations of a photo that EXIF turns by a quarter may be on its stored pixels: their size tells, else `form` does. Raises RowError
    `photo_unreadable`, `photo_format`, `size_mismatch`.
    """

    def __init__(self, photo: bytes, annotated_hw: tuple[int, int], form: AnnotationForm | None = None):
        self._photo, self.form = read_photo_info(photo), form or AnnotationForm()
        is_stored = _needs_turn(annotated_hw, self._photo) or self.form.coordinates == "stored"
        self.size_hw = self._photo.size_hw
        self.annotated_hw = self._photo.stored_hw if is_stored else annotated_hw
        self._turn = _TO_UPRIGHT[self._photo.orientation] if is_stored and self._photo.orientation != 1 else None

    def region(self, annotation: Mapping[str, Any], category: str, description: str | None = None, ignore: bool = False) -> Region:
        """From the `segmentation`, polygons or an RLE, which is held against `bbox` and `area`.

        Raises RowError of `segmentation_to_rle`, `empty_mask`, and `mask_disagrees` with both values.
        """
        rle = read_mask(annotation.get("segmentation"), self.annotated_hw, self.form.coordinates)
        upright = self._to_upright(rle)
        if self._is_in_shares(annotation) or not any(agrees(each, annotation, self.form.boxes) for each in (rle, upright)):
            raise RowError("mask_disagrees", self._disagreement(rle, annotation))
        return build_region(upright, category, description, ignore)

    def region_of_mask(self, mask: np.ndarray, category: str, description: str | None = None, ignore: bool = False) -> Region:
        """From a bool bitmap (h, w) of `annotated_hw`. Raises RowError `size_mismatch`, `empty_mask`."""
        if mask.shape != self.annotated_hw:
            raise RowError("size_mismatch", f"a mask of {mask.shape} (h, w) for annotations of {self.annotated_hw}")
        return build_region(mask_to_rle(self._turn(mask) if self._turn else mask), category, description, ignore)

    def _is_in_shares(self, annotation: Mapping[str, Any]) -> bool:
        return self.form.coordinates != "normalised" and looks_normalised(annotation.get("segmentation"), self.annotated_hw)

    def _disagreement(self, rle: RLE, annotation: Mapping[str, Any]) -> str:
        given = {name: annotation.get(name) for name in ("bbox", "area")}
        said = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None) or "neither box nor area"
        found = f"the mask's box is {rle_box_xywh(rle)} (x, y, w, h) with {rle_area(rle)} pixels, the annotation says {said}"[:200]
        ways: dict[str, float] = {}
        other = "xyxy" if self.form.boxes == "xywh" else "xywh"
        if not self._is_in_shares(annotation) and closeness(rle, annotation, other) >= MIN_BOX_IOU:
            ways[f"boxes={other}"] = closeness(rle, annotation, other)
        for coordinates in COORDINATES:
            read = self._read_as(annotation, coordinates) if coordinates != self.form.coordinates else None
            if read and rle_area(read) and agrees(read, annotation, self.form.boxes):
                ways[f"coordinates={coordinates}"] = closeness(read, annotation, self.form.boxes)
        if ways:
            return f"{found}; they agree with {max(ways, key=ways.__getitem__)}"
        return f"{found}; correct the annotation, or give boxes=unchecked where boxes are not those of the masks"

    def _read_as(self, annotation: Mapping[str, Any], coordinates: Coordinates) -> RLE | None:
        """The mask if its annotation was written in `coordinates`, upright; None where it cannot be."""
        segmentation = annotation.get("segmentation")
        try:
            if coordinates != "stored":
                return read_mask(segmentation, self.annotated_hw, coordinates)
            if self._photo.orientation == 1:
                return None
            stored = rle_to_mask(read_mask(segmentation, self._photo.stored_hw, "pixels"))
            return mask_to_rle(_TO_UPRIGHT[self._photo.orientation](stored))
        except RowError:
            return None

    def _to_upright(self, rle: RLE) -> RLE:
        return mask_to_rle(self._turn(rle_to_mask(rle))) if self._turn else rle


def _needs_turn(annotated_hw: tuple[int, int], photo: PhotoInfo) -> bool:
    if annotated_hw == photo.size_hw:
        return False
    if annotated_hw == photo.stored_hw:
        return True
    raise RowError("size_mismatch", f"the photo is {photo.size_hw} (h, w), its annotations are for {annotated_hw}")
