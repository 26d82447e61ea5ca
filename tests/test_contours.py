"""Polygons of masks, against COCO's rasteriser and against shapes that are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pixellm.contours import mask_to_polygons
from pixellm.masks import polygons_to_rle, rle_area, rle_to_mask


def assert_covers(mask: np.ndarray) -> None:
    polygons = mask_to_polygons(mask)
    assert (rle_to_mask(polygons_to_rle(polygons, mask.shape)) == mask).all()
    assert sum(rle_area(polygons_to_rle([polygon], mask.shape)) for polygon in polygons) == mask.sum()  # they share nothing


@given(arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans()))
def test_the_rasteriser_gives_any_mask_back(mask):
    if mask.any():
        assert_covers(mask)
    else:
        assert mask_to_polygons(mask) == []


@pytest.mark.parametrize("scale, density", [(1, 0.5), (7, 0.4), (40, 0.6)])
def test_large_masks(scale, density):
    cells = np.random.default_rng(0).random((240 // scale, 400 // scale)) < density
    assert_covers(np.kron(cells, np.ones((scale, scale), dtype=bool)))


def test_known_shapes():
    box = np.zeros((5, 7), dtype=bool)
    box[1:3, 2:6] = True
    assert mask_to_polygons(box) == [[2, 1, 6, 1, 6, 3, 2, 3]]
    ring = np.ones((5, 5), dtype=bool)
    ring[2, 2] = False
    assert len(mask_to_polygons(ring)) == 2
    corners = np.eye(2, dtype=bool)
    assert mask_to_polygons(corners) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]
