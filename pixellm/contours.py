"""The outlines of a mask as polygons along the edges of its pixels, without holes: where there is one, the mask is cut through it.

Exact: COCO's rasteriser gives the mask back, since no point of an outline is left out or moved.
"""

import numpy as np


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """bool (H, W) -> polygons [x0, y0, x1, y1, …] in pixels, which share no pixel and together cover the mask; none for an empty mask.

    Clockwise as one sees it (y downwards). Pixels that touch at a corner only do not belong together.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    if not columns.size:
        return []
    cuts, right = [int(columns[0])], int(columns[-1]) + 1
    holes = [outline for outline in _outlines(mask) if _twice_area(outline) < 0]
    for hole in sorted(holes, key=lambda hole: hole[:, 0].max()):  # the fewest vertical cuts that meet every hole
        if hole[:, 0].min() >= cuts[-1]:
            cuts.append(int(hole[:, 0].max()))
    strips = zip(cuts, [*cuts[1:], right], strict=True)
    moved = [outline + np.array((start, 0)) for start, stop in strips for outline in _outlines(mask[:, start:stop])]
    return [list(map(int, outline.ravel())) for outline in moved]


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Corners (P, 2), x and y, of every outline of `mask`: outer ones clockwise, those of holes the other way."""
    pixels = np.pad(np.asarray(mask, dtype=bool), 1)
    upper, lower = pixels[:-1], pixels[1:]
    # Horizontal pieces of outline: along the top of pixels to the right, along their bottom to the left.
    (y_top, left, right), (y_bottom, bottom_left, bottom_right) = _runs(lower & ~upper), _runs(upper & ~lower)
    y, start, end = np.concatenate((y_top, y_bottom)), np.concatenate((left, bottom_right)), np.concatenate((right, bottom_left))
    runs_right = np.arange(len(y)) < len(y_top)
    # Where a piece ends the outline turns down or up, and where one starts it came from above or below: vertical pieces connect the two.
    goes_down = np.where(runs_right, ~lower[y, end + 1], upper[y, end])
    comes_down = np.where(runs_right, lower[y, start], ~upper[y, start + 1])
    following = np.empty(len(y), dtype=np.int64)
    for ends, starts in ((goes_down, comes_down), (~goes_down, ~comes_down)):
        ends, starts = np.flatnonzero(ends), np.flatnonzero(starts)
        # Those of one direction in one column do not overlap, so that in order each has its own two ends.
        following[ends[np.lexsort((y[ends], end[ends]))]] = starts[np.lexsort((y[starts], start[starts]))]
    corners = np.stack((start, y, end, y), axis=1).reshape(-1, 2, 2)
    return [corners[loop].reshape(-1, 2) for loop in _loops(following)]


def _runs(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool (R, C + 2), off at both sides -> row, first and end column (less the one at the side) of each run of on."""
    steps = np.diff(edges.astype(np.int8), axis=1)
    rows, first = np.nonzero(steps == 1)
    return rows, first, np.nonzero(steps == -1)[1]


def _loops(following: np.ndarray) -> list[list[int]]:
    """The cycles of a permutation."""
    following_of, is_new, loops = following.tolist(), [True] * len(following), []
    for first in range(len(following_of)):
        loop, index = [], first
        while is_new[index]:
            is_new[index] = False
            loop.append(index)
            index = following_of[index]
        if loop:
            loops.append(loop)
    return loops


def _twice_area(corners: np.ndarray) -> int:
    """Positive for a clockwise outline (y downwards)."""
    x, y = corners.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
