"""Pixel counts of all overlaps among the masks of many questions at once, from the runs alone: no bitmap is made.

The edges of all runs of a question are sorted into one line. Between two edges the set of masks that are on does not change; it is a number
whose bit m stands for mask m, and each edge flips one bit. Summing the pixels of each such set gives every intersection and every union.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixellm.errors import RowError
from pixellm.masks import RLE, rle_area, rle_intersection_areas, union_rles

MOST_MASKS = 10  # of a question: there are 2**m sets. Questions with more are counted mask by mask
QUESTIONS_AT_A_TIME = 16  # temporary arrays then stay in the cache, and are not given back to the system each time

Question = tuple[Sequence[RLE], Sequence[RLE]]  # predicted and true masks


@dataclass(frozen=True)
class Overlaps:
    """int64: areas of the predicted (P,) and the true masks (T,), of their intersections (P, T), and of the intersection and the union of
    all predicted with all true ones."""

    predicted: np.ndarray
    true: np.ndarray
    both: np.ndarray
    union_intersection: int
    union_union: int


def count_overlaps(questions: Sequence[Question]) -> list[Overlaps]:
    """Of each question. Raises RowError: `size_mismatch` when the masks of one question are not all of one size, `rle_invalid`."""
    for predicted, true in questions:
        sizes = {(rle["size"][0], rle["size"][1]) for masks in (predicted, true) for rle in masks}
        if len(sizes) > 1:
            raise RowError("size_mismatch", f"masks of different sizes (h, w): {sorted(sizes)}")
    found: dict[int, Overlaps] = {}
    by_counts: dict[tuple[int, int], list[int]] = {}
    for place, (predicted, true) in enumerate(questions):
        by_counts.setdefault((len(predicted), len(true)), []).append(place)
    for (num_predicted, num_true), places in by_counts.items():
        for start in range(0, len(places), QUESTIONS_AT_A_TIME):
            some = places[start:start + QUESTIONS_AT_A_TIME]
            count = _count_mask_by_mask if num_predicted + num_true > MOST_MASKS else _count_together
            found |= zip(some, count([questions[place] for place in some], num_predicted, num_true), strict=True)
    return [found[place] for place in range(len(questions))]


def _count_together(questions: list[Question], num_predicted: int, num_true: int) -> list[Overlaps]:
    num_masks = num_predicted + num_true
    num_sets = 1 << num_masks
    areas = _areas_of_sets([rle for predicted, true in questions for rle in (*predicted, *true)], len(questions), num_masks)
    bits = np.arange(num_sets)[:, None] >> np.arange(num_masks) & 1
    pairs = (bits[:, :, None] * bits[:, None, :]).reshape(num_sets, -1)
    of_pairs = np.rint(areas @ pairs).astype(np.int64).reshape(len(questions), num_masks, num_masks)  # exact: integers far below 2**53
    has_predicted, has_true = bits[:, :num_predicted].any(1), bits[:, num_predicted:].any(1)
    of_unions = np.rint(areas @ np.stack([has_predicted & has_true, has_predicted | has_true], 1)).astype(np.int64).tolist()
    alone = of_pairs.diagonal(axis1=1, axis2=2)
    return [Overlaps(alone[place, :num_predicted], alone[place, num_predicted:], of_pairs[place, :num_predicted, num_predicted:], *unions)
            for place, unions in enumerate(of_unions)]


def _areas_of_sets(rles: list[RLE], num_questions: int, num_masks: int) -> np.ndarray:
    """float64 (Q, 2**M): pixels on which exactly the masks of a set are on. Mask m of question q is `rles[q * M + m]`."""
    if not num_masks:
        return np.zeros((num_questions, 1))
    edges, num_edges = _edges(rles)
    # One number for each edge: its question, its place there, its mask. Parts are whole bits, which shift faster than numbers divide.
    mask_bits, place_bits = (num_masks - 1).bit_length(), max(rle["size"][0] * rle["size"][1] for rle in rles).bit_length()
    question, mask = np.divmod(np.arange(len(rles)), num_masks)
    keys = (edges << mask_bits) + np.repeat((question << place_bits + mask_bits) + mask, num_edges)
    keys.sort()
    places = keys >> mask_bits
    sets = np.bitwise_xor.accumulate(np.left_shift(1, keys & (1 << mask_bits) - 1))  # behind each edge
    # A question's last edge leaves no mask on, so what lies between two questions counts for the empty set only, which nobody reads.
    bins = (places[:-1] >> place_bits << num_masks) + sets[:-1]
    return np.bincount(bins, weights=np.diff(places), minlength=num_questions << num_masks).reshape(num_questions, -1)


def _edges(rles: list[RLE]) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of on pixels start and stop, in turn, int64, mask after mask, and how many edges each mask has: an even number.

    Raises RowError `rle_invalid` for counts that COCO does not write, or that do not cover their mask exactly.
    """
    values, num_runs = _stored_values([rle["counts"] for rle in rles])
    is_odd = num_runs & 1
    num_edges = num_runs + is_odd  # the last run is off where there are odd many: an empty one follows it
    starts = np.cumsum(num_edges) - num_edges
    padded = np.zeros(int(num_edges.sum()), dtype=np.int64)
    padded[np.arange(len(values)) + np.repeat(np.cumsum(is_odd) - is_odd, num_runs)] = values
    # From the fourth number of a mask on, each is stored as the difference to the one two before. Off and on runs are two sums.
    half, first = num_edges >> 1, starts >> 1
    has_runs = half > 0
    for parity, runs in ((0, padded[0::2]), (1, padded[1::2])):
        raw = runs[first[has_runs]].copy()
        if parity == 0:  # the first off run is no part of the sum
            runs[first[has_runs]] = 0
        sums = np.cumsum(runs)
        sums -= np.repeat((sums[first[has_runs]] - (raw if parity else 0)), half[has_runs])
        if parity == 0:
            sums[first[has_runs]] = raw
        runs[:] = sums
    padded[(starts + num_edges - 1)[is_odd == 1]] = 0
    if len(padded) and padded.min() < 0:
        raise RowError("rle_invalid", "counts hold a negative run")
    edges = np.cumsum(padded)
    covered = np.diff(np.concatenate(([0], edges))[np.concatenate((starts, [len(edges)]))])
    num_pixels = np.array([rle["size"][0] * rle["size"][1] for rle in rles])
    if (covered != num_pixels).any():
        wrong = int((covered != num_pixels).argmax())
        raise RowError("rle_invalid", f"counts cover {covered[wrong]} pixels of a mask of {'x'.join(map(str, rles[wrong]['size']))}")
    return edges - np.repeat(np.cumsum(num_pixels) - num_pixels, num_edges), num_edges


def _stored_values(counts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of COCO's texts, int64, one text after the other, and how many each has. Raises RowError `rle_invalid`."""
    codes = np.frombuffer("".join(counts).encode("latin-1"), dtype=np.uint8) - np.uint8(48)
    borders = np.cumsum([0, *map(len, counts)])
    # A number is a little-endian row of 5-bit digits; bit 5 says that more follow, bit 4 of the last one is the sign.
    is_last = codes < 32
    if codes.size and (codes.max() > 63 or not is_last[borders[1:][np.diff(borders) > 0] - 1].all()):
        raise RowError("rle_invalid", "counts are not COCO text")
    ends = np.flatnonzero(is_last)
    num_digits = np.diff(ends, prepend=-1)
    if num_digits.max(initial=0) > 12:
        raise RowError("rle_invalid", "counts hold a number too long for a mask")
    values = (codes[ends] & 31).astype(np.int64)
    values -= (values & 16) << 1
    for digit in range(1, int(num_digits.max(initial=0))):  # most have one or two
        values = np.where(num_digits > digit, values << 5 | codes[ends - digit] & 31, values)
    return values, np.diff(np.concatenate(([0], np.cumsum(is_last)))[borders])


def _count_mask_by_mask(questions: list[Question], num_predicted: int, num_true: int) -> list[Overlaps]:
    found = []
    for predicted, true in questions:
        size_hw = (*predicted, *true)[0]["size"][0], (*predicted, *true)[0]["size"][1]
        unions = union_rles(predicted, size_hw), union_rles(true, size_hw)
        intersection = int(rle_intersection_areas([unions[0]], [unions[1]])[0, 0])
        areas_p, areas_t = (np.array([rle_area(rle) for rle in masks], dtype=np.int64) for masks in (predicted, true))
        found.append(Overlaps(areas_p, areas_t, rle_intersection_areas(predicted, true), intersection,
                              sum(map(rle_area, unions)) - intersection))
    return found
