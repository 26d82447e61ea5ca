"""A mask held against what else its annotation says of it: the box, else the area.

A mask at another place than its box is read in another form than it was written: shares of the photo instead of pixels, x and y exchanged,
run lengths along the rows, pixels of the photo before EXIF turned it. Each annotation that disagrees is set aside with the form in which it
would agree, so that a file of that form can be read by saying so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from pixellm.data.schema import RejectedRow
from pixellm.masks import RLE, mask_to_rle, rle_area, rle_box_xywh, rle_counts, segmentation_to_rle
from pixellm.settings import StrictModel

# Of 2,331 annotations of COCO and LVIS the worst box lies 6.0 px beside that of its mask (IoU 0.89), the worst IoU is 0.40 (boxes of a few
# pixels, 2.6 px apart at most). Both have to be bad; a mask at another place has an IoU of 0.
MIN_BOX_IOU = 0.5
MAX_BOX_DISTANCE_PX = 4.0
MAX_AREA_FACTOR = 4.0  # measured: 0.60 to 1.27; exporters that write the box's area are below 1
MIN_AREA_FACTOR = 1 / 20
AREA_SLACK_PX = 16.0
MAX_AREA_PX = 1e12
MAX_SHARE = 1.0  # a polygon whose coordinates are all at most this is not in pixels

Coordinates = Literal["pixels", "normalised", "swapped", "stored"]
COORDINATES: tuple[Coordinates, ...] = ("pixels", "normalised", "swapped", "stored")
_WAY = re.compile(r"they agree with (\S+)$")


class AnnotationForm(StrictModel):
    """The form in which an annotation file writes masks and boxes."""

    coordinates: Coordinates = Field(default="pixels", description=(
        "of polygons: pixels; normalised, shares of width and height; swapped, y before x (an RLE: along the rows); stored, on the "
        "pixels of the file before EXIF turns them"))
    boxes: Literal["xywh", "xyxy", "unchecked"] = Field(default="xywh", description=(
        "form of the boxes that masks are held against; unchecked: not at all, for boxes that are meant to differ from the visible mask"))


def read_mask(segmentation: Any, size_hw: tuple[int, int], coordinates: Coordinates) -> RLE:
    """A `segmentation` written in `coordinates` to an RLE of `size_hw`. Raises RowError of `segmentation_to_rle`."""
    if coordinates == "swapped" and isinstance(segmentation, dict):
        return _read_rows(segmentation, size_hw)
    if coordinates in ("normalised", "swapped") and isinstance(segmentation, list):
        segmentation = [_convert(polygon, size_hw, coordinates) for polygon in segmentation]
    return segmentation_to_rle(segmentation, size_hw)


def agrees(rle: RLE, annotation: Mapping[str, Any], boxes: str) -> bool:
    """Tell whether the mask is where the annotation's `bbox` is; without a box, of about its `area`; without both, yes.

    A box or area that is not numbers, or empty, says nothing. A box of shares of the photo is taken for what it is.
    """
    if boxes == "unchecked" or not (mask_area := rle_area(rle)):
        return True
    if (box := _to_box(annotation.get("bbox"), boxes, rle)) is not None:
        found = np.array(rle_box_xywh(rle), dtype=np.float64)
        return box_distance_px(found, box) <= MAX_BOX_DISTANCE_PX or box_iou(found, box) >= MIN_BOX_IOU
    area = annotation.get("area")
    if isinstance(area, int | float) and not isinstance(area, bool) and MAX_SHARE < area < MAX_AREA_PX:
        return area * MIN_AREA_FACTOR - AREA_SLACK_PX <= mask_area <= area * MAX_AREA_FACTOR + AREA_SLACK_PX
    return True


def closeness(rle: RLE, annotation: Mapping[str, Any], boxes: str) -> float:
    """Rank of a form among those in which mask and annotation agree: the IoU of the boxes, 0 without one."""
    box = _to_box(annotation.get("bbox"), boxes, rle)
    return 0.0 if box is None else box_iou(np.array(rle_box_xywh(rle), dtype=np.float64), box)


def looks_normalised(segmentation: Any, size_hw: tuple[int, int]) -> bool:
    """Tell whether all coordinates of polygons lie between 0 and 1 in a photo of more pixels than that."""
    if not isinstance(segmentation, list) or min(size_hw) <= 2 * MAX_SHARE:
        return False
    try:
        values = np.concatenate([np.asarray(polygon, dtype=np.float64) for polygon in segmentation])
    except (TypeError, ValueError, OverflowError):
        return False
    return values.ndim == 1 and values.size >= 6 and bool((values >= 0).all()) and float(values.max()) <= MAX_SHARE


def common_way(rejected: Iterable[RejectedRow]) -> str | None:
    """The form that would make masks agree, where that of most `mask_disagrees` is one; for the message that stops a job."""
    details = [each.detail for each in rejected if each.reason == "mask_disagrees"]
    ways = Counter(found.group(1) for detail in details if (found := _WAY.search(detail)))
    if not ways or (most := ways.most_common(1)[0])[1] <= len(details) / 2:
        return None
    return f"{most[1]} of {len(details)} masks that disagree with their box or area would agree with {most[0]}: give that key"


def box_distance_px(a_xywh: np.ndarray, b_xywh: np.ndarray) -> float:
    """Largest distance between two sides of the boxes."""
    return float(np.abs(_corners(a_xywh) - _corners(b_xywh)).max())


def box_iou(a_xywh: np.ndarray, b_xywh: np.ndarray) -> float:
    """IoU of two boxes with positive sides."""
    a, b = _corners(a_xywh), _corners(b_xywh)
    overlap = float(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod())
    return overlap / float(a_xywh[2:].prod() + b_xywh[2:].prod() - overlap)


def _corners(xywh: np.ndarray) -> np.ndarray:
    return np.concatenate((xywh[:2], xywh[:2] + xywh[2:]))


def _to_box(box: Any, boxes: str, rle: RLE) -> np.ndarray | None:
    """A `bbox` as x, y, w, h in pixels; None for what is no box."""
    try:
        values = np.asarray(box, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if values.shape != (4,) or not np.isfinite(values).all():
        return None
    if boxes == "xyxy":
        values = np.concatenate((values[:2], values[2:] - values[:2]))
    height, width = rle["size"]
    scale = (width, height, width, height) if values.max() <= MAX_SHARE < min(height, width) else 1
    return values * scale if (values[2:] > 0).all() else None


def _convert(polygon: Any, size_hw: tuple[int, int], coordinates: Coordinates) -> Any:
    try:
        pairs = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        return polygon  # `segmentation_to_rle` says what is wrong with it
    return (pairs[:, ::-1] if coordinates == "swapped" else pairs * (size_hw[1], size_hw[0])).reshape(-1).tolist()


def _read_rows(segmentation: Mapping[str, Any], size_hw: tuple[int, int]) -> RLE:
    """An RLE whose counts run along the rows, its size written either way."""
    size = segmentation.get("size")
    turned = segmentation_to_rle({**segmentation, "size": list(size_hw[::-1])}, (size_hw[1], size_hw[0])) \
        if isinstance(size, list) and sorted(map(str, size)) == sorted(map(str, size_hw)) else segmentation_to_rle(segmentation, size_hw)
    counts = rle_counts(turned)
    return mask_to_rle(np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(size_hw))
