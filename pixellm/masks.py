"""Masks in every form we meet: polygons, COCO RLE (compressed or not), bitmaps, PNG.

The one place that knows that COCO counts pixels down the columns. A mask is a bool array (H, W); an RLE is COCO's compressed form,
`{"size": [h, w], "counts": str}`. Everything is exact: areas and intersections are integers. Bad input raises RowError with its reason.
"""

import io
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from pixellm.errors import RowError

MAX_OUTSIDE_PX = 2.0  # annotation tools round polygons up to the far edge and a little beyond; more than this is a mistake


class RLE(TypedDict):
    """COCO's compressed run lengths: `size` is [h, w], `counts` an ASCII string."""

    size: list[int]
    counts: str


def mask_to_rle(mask: np.ndarray) -> RLE:
    """(H, W), bool or 0/1, to RLE."""
    if mask.ndim != 2:
        raise RowError("mask_shape", f"a mask has 2 dimensions, found shape {mask.shape}")
    return _to_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def crop_to_rle(crop: np.ndarray, box_xy: tuple[int, int], size_hw: tuple[int, int]) -> RLE:
    """bool (h, w), the part of a mask of `size_hw` whose upper left pixel is at `box_xy`, to the RLE of the whole; outside it is off.

    Its time grows with the crop, not with the whole, and is a third where the crop's columns lie in one piece (`crop.T` is contiguous).
    """
    (left, top), (height, width) = box_xy, size_hw
    if crop.ndim != 2 or left < 0 or top < 0 or left + crop.shape[1] > width or top + crop.shape[0] > height:
        raise RowError("mask_shape", f"a crop of shape {crop.shape} at x {left}, y {top} is not inside a mask of {width}x{height}")
    columns = np.zeros((crop.shape[1], crop.shape[0] + 2), dtype=bool)  # with an off pixel before and after each
    columns[:, 1:-1] = crop.T
    flat = columns.reshape(-1)
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), columns.shape[1])
    edges = (left + column) * height + top + row  # where runs of on pixels start and stop, in turn
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run down to the lower edge goes on at the top of the next column
    return _edges_to_rle(np.delete(edges, np.concatenate((2 * joined + 1, 2 * joined + 2))), size_hw)


def label_map_to_rles(labels: np.ndarray) -> dict[int, RLE]:
    """Integers (H, W) to the RLE of each value that occurs, in ascending order. Its time does not grow with the number of values."""
    if labels.ndim != 2:
        raise RowError("mask_shape", f"a label map has 2 dimensions, found shape {labels.shape}")
    flat = labels.T.reshape(-1)
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    edges = np.stack((starts, np.append(starts[1:], flat.size)), axis=1)
    values = flat[starts]
    order = np.argsort(values, kind="stable")
    runs_of_values = np.split(order, np.flatnonzero(np.diff(values[order])) + 1)
    return {int(values[runs[0]]): _edges_to_rle(edges[runs].reshape(-1), labels.shape) for runs in runs_of_values}


def rle_to_mask(rle: RLE) -> np.ndarray:
    """RLE to bool (H, W). The counts must be valid: see `check_rle` for those that come from outside."""
    height, width = rle["size"]
    counts = rle_counts(rle)
    return np.ascontiguousarray(np.repeat(np.arange(counts.size) % 2 == 1, counts).reshape(width, height).T)


def polygons_to_rle(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> RLE:
    """Union of polygons, each [x0, y0, x1, y1, …] in pixels, rasterised by COCO's own rule.

    Raises RowError: `polygon_invalid` (no polygon, fewer than 3 points, an odd number of coordinates, not finite),
    `polygon_outside` (a point more than `MAX_OUTSIDE_PX` beyond the photo).
    """
    height, width = size_hw
    if not polygons:
        raise RowError("polygon_invalid", "the list of polygons is empty")
    for polygon in polygons:
        try:
            points = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise RowError("polygon_invalid", f"a polygon is a list of numbers, found {str(polygon)[:60]!r}") from None
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise RowError("polygon_invalid", f"a polygon is an even number of at least 6 finite coordinates, found {str(polygon)[:60]!r}")
        x, y = points[0::2], points[1::2]
        beyond = max(-x.min(), -y.min(), x.max() - width, y.max() - height)
        if beyond > MAX_OUTSIDE_PX:
            raise RowError("polygon_outside", f"x {x.min():g} to {x.max():g}, y {y.min():g} to {y.max():g} in a photo of {width}x{height}")
    return _to_text(coco_mask.merge(coco_mask.frPyObjects([list(map(float, polygon)) for polygon in polygons], height, width)))


def segmentation_to_rle(segmentation: Any, size_hw: tuple[int, int]) -> RLE:
    """The `segmentation` of a COCO, LVIS or refCLEF annotation: polygons, uncompressed or compressed RLE, or a list of RLEs (their union).

    Raises RowError: `size_mismatch`, `rle_invalid`, and those of `polygons_to_rle`. An empty mask is not an error here.
    """
    if isinstance(segmentation, list) and segmentation and all(isinstance(part, dict) for part in segmentation):
        return union_rles([segmentation_to_rle(part, size_hw) for part in segmentation], size_hw)
    if isinstance(segmentation, list):
        return polygons_to_rle(segmentation, size_hw)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise RowError("rle_invalid", f"a segmentation is polygons or an RLE, found {str(segmentation)[:60]!r}")
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, list | tuple) or list(size) != list(size_hw):
        raise RowError("size_mismatch", f"an RLE of size {size} (h, w) in a photo of {list(size_hw)}")
    if isinstance(counts, list):
        if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != size_hw[0] * size_hw[1]:
            raise RowError("rle_invalid", f"{len(counts)} counts do not add up to {size_hw[0] * size_hw[1]} pixels")
        return _to_text(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size_hw))
    rle = RLE(size=[int(side) for side in size], counts=counts.decode("latin-1") if isinstance(counts, bytes) else counts)
    check_rle(rle)
    return rle


def check_rle(rle: RLE) -> None:
    """Raise RowError `rle_invalid` unless the counts are COCO text that covers the mask exactly. C code trusts them, so we must not."""
    height, width = rle["size"]
    if not isinstance(rle["counts"], str) or not rle["counts"].isascii():
        raise RowError("rle_invalid", f"counts are ASCII text, found {str(rle['counts'])[:40]!r}")
    counts = rle_counts(rle)
    if (counts.size and counts.min() < 0) or counts.sum() != height * width:
        raise RowError("rle_invalid", f"counts cover {counts.sum()} pixels of a mask of {height}x{width}")


def rle_counts(rle: RLE) -> np.ndarray:
    """Run lengths, int64 (R,), down the columns: off, on, off, … Raises RowError `rle_invalid` for text that COCO does not write."""
    codes = np.frombuffer(rle["counts"].encode("latin-1"), dtype=np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise RowError("rle_invalid", f"counts {rle['counts'][:40]!r} are not COCO text")
    # A number is a little-endian row of 5-bit digits; bit 5 says that more follow, bit 4 of the last one is the sign.
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate(([0], ends[:-1] + 1))
    num_digits = ends - starts + 1
    if num_digits.max() > 12:
        raise RowError("rle_invalid", f"counts {rle['counts'][:40]!r} hold a number too long for a mask")
    digit = np.arange(codes.size) - np.repeat(starts, num_digits)
    values = np.add.reduceat((codes & 31) << (5 * digit), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * num_digits), 0)
    # From the fourth on, each is stored as the difference to the one two before.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def union_rles(rles: Sequence[RLE], size_hw: tuple[int, int]) -> RLE:
    """Union; of nothing, an empty mask of `size_hw`."""
    if not rles:
        return mask_to_rle(np.zeros(size_hw, dtype=bool))
    wrong = next((rle["size"] for rle in rles if list(rle["size"]) != list(size_hw)), None)
    if wrong is not None:
        raise RowError("size_mismatch", f"a mask of {wrong} (h, w) in a union of {list(size_hw)}")
    return _to_text(coco_mask.merge([_to_coco(rle) for rle in rles]))


def rle_area(rle: RLE) -> int:
    """Number of pixels that are on."""
    return int(coco_mask.area(_to_coco(rle)))


def rle_box_xywh(rle: RLE) -> list[int]:
    """Smallest box around the pixels that are on, [x, y, w, h]; [0, 0, 0, 0] for an empty mask."""
    if not rle_area(rle):
        return [0, 0, 0, 0]
    return [int(side) for side in coco_mask.toBbox(_to_coco(rle))]


def rle_intersection_areas(rles_a: Sequence[RLE], rles_b: Sequence[RLE]) -> np.ndarray:
    """Exact pixel counts of all intersections, int64 (A, B), from the runs alone: no bitmap is made.

    Raises RowError `size_mismatch` when two sizes differ.
    """
    sizes = {tuple(rle["size"]) for rle in (*rles_a, *rles_b)}
    if len(sizes) > 1:
        raise RowError("size_mismatch", f"masks of different sizes (h, w): {sorted(sizes)}")
    areas = np.zeros((len(rles_a), len(rles_b)), dtype=np.int64)
    if not areas.size:
        return areas
    edges_a = [np.concatenate(([0], np.cumsum(rle_counts(rle)))) for rle in rles_a]
    starts = np.concatenate([edges[1:-1:2] for edges in edges_a])
    stops = np.concatenate([edges[2::2] for edges in edges_a])
    row = np.repeat(np.arange(len(rles_a)), [len(edges[2::2]) for edges in edges_a])
    for column, rle in enumerate(rles_b):
        edges = np.concatenate(([0], np.cumsum(rle_counts(rle))))
        on_pixels = np.diff(edges) * (np.arange(len(edges) - 1) % 2)
        covered = np.concatenate(([0], np.cumsum(on_pixels)))  # pixels of b before each edge; linear in between
        inside = np.interp(stops, edges, covered) - np.interp(starts, edges, covered)  # exact: integers far below 2**53
        np.add.at(areas[:, column], row, np.rint(inside).astype(np.int64))
    return areas


def mask_to_png(mask: np.ndarray) -> bytes:
    """bool (H, W) to a 1-bit PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(mask, dtype=bool)).save(stream, format="PNG")
    return stream.getvalue()


def png_to_mask(data: bytes) -> np.ndarray:
    """A black-and-white or grey PNG to bool (H, W): on where the value is not 0. Raises RowError `mask_unreadable`."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.mode not in ("1", "L"):
                raise RowError("mask_unreadable", f"a mask PNG has one channel of 1 or 8 bits, found mode {image.mode}")
            return np.asarray(image) > 0
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RowError("mask_unreadable", f"not a PNG: {error}") from None


def _to_coco(rle: RLE) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].encode("latin-1")}


def _to_text(rle: dict[str, Any]) -> RLE:
    return RLE(size=[int(side) for side in rle["size"]], counts=rle["counts"].decode("ascii"))


def _edges_to_rle(edges: np.ndarray, size_hw: tuple[int, ...]) -> RLE:
    """From where runs of on pixels start and stop, in turn, counted down the columns."""
    height, width = size_hw
    counts = np.diff(edges, prepend=0, append=height * width)
    if counts[-1] == 0:  # COCO writes no run of nothing at the end
        counts = counts[:-1]
    return _to_text(coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width))
