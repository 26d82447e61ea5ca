"""masks.py: every form turns into every other without loss, and counts agree with plain numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pixellm import masks
from pixellm.errors import RowError

SIZES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
MASKS = SIZES.flatmap(lambda size: hnp.arrays(bool, size))
QUICK = settings(max_examples=60, deadline=None)


def same_size_masks(count: int) -> st.SearchStrategy[list[np.ndarray]]:
    return SIZES.flatmap(lambda size: st.lists(hnp.arrays(bool, size), min_size=count, max_size=count))


def counts_of(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, written independently of pycocotools."""
    flat = mask.T.reshape(-1).astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flat, [2]))))
    return np.diff(np.concatenate(([0], edges))).tolist()


@QUICK
@given(MASKS)
def test_rle_and_png_give_the_mask_back(mask: np.ndarray) -> None:
    rle = masks.mask_to_rle(mask)
    masks.check_rle(rle)
    assert rle["size"] == list(mask.shape) and isinstance(rle["counts"], str)
    np.testing.assert_array_equal(masks.rle_to_mask(rle), mask)
    np.testing.assert_array_equal(masks.png_to_mask(masks.mask_to_png(mask)), mask)


@QUICK
@given(MASKS, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_a_crop_gives_the_rle_of_the_whole(crop: np.ndarray, left: int, right: int, top: int, bottom: int) -> None:
    whole = np.pad(crop, ((top, bottom), (left, right)))
    for same in (crop, np.asfortranarray(crop)):
        assert masks.crop_to_rle(same, (left, top), whole.shape) == masks.mask_to_rle(whole)


@pytest.mark.parametrize(("shape", "box_xy"), [((2, 2), (2, 0)), ((2, 2), (0, 3)), ((2, 2), (-1, 0)), ((2,), (0, 0))])
def test_a_crop_outside_is_refused(shape: tuple[int, ...], box_xy: tuple[int, int]) -> None:
    with pytest.raises(RowError, match="not inside a mask of 3x4"):
        masks.crop_to_rle(np.ones(shape, dtype=bool), box_xy, (4, 3))


def test_an_empty_crop_is_an_empty_mask() -> None:
    assert masks.rle_area(masks.crop_to_rle(np.zeros((0, 0), dtype=bool), (0, 0), (4, 3))) == 0


@QUICK
@given(SIZES.flatmap(lambda size: hnp.arrays(np.uint16, size, elements=st.sampled_from([0, 1, 7, 255, 300]))))
def test_a_label_map_is_a_mask_per_value(labels: np.ndarray) -> None:
    found = masks.label_map_to_rles(labels)
    assert list(found) == sorted(set(labels.flat))
    assert all(rle == masks.mask_to_rle(labels == value) for value, rle in found.items())


@QUICK
@given(MASKS)
def test_all_rle_forms_of_an_annotation_are_the_same_mask(mask: np.ndarray) -> None:
    size_hw = mask.shape
    rle = masks.mask_to_rle(mask)
    uncompressed = {"size": list(size_hw), "counts": counts_of(mask)}
    assert masks.rle_counts(rle).tolist() == counts_of(mask)
    for segmentation in (rle, uncompressed, {"size": size_hw, "counts": rle["counts"].encode()}):
        np.testing.assert_array_equal(masks.rle_to_mask(masks.segmentation_to_rle(segmentation, size_hw)), mask)
    upper, lower = mask.copy(), mask.copy()
    upper[size_hw[0] // 2:], lower[:size_hw[0] // 3] = False, False  # their rows overlap
    parts = [masks.mask_to_rle(upper), {"size": list(size_hw), "counts": counts_of(lower)}]
    np.testing.assert_array_equal(masks.rle_to_mask(masks.segmentation_to_rle(parts, size_hw)), mask)


@QUICK
@given(MASKS)
def test_area_and_box_against_numpy(mask: np.ndarray) -> None:
    rle = masks.mask_to_rle(mask)
    assert masks.rle_area(rle) == int(mask.sum())
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [0, 0, 0, 0] if not rows.size else [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert masks.rle_box_xywh(rle) == box


@QUICK
@given(same_size_masks(5))
def test_unions_and_intersections_against_numpy(five: list[np.ndarray]) -> None:
    rles = [masks.mask_to_rle(mask) for mask in five]
    size_hw = five[0].shape
    np.testing.assert_array_equal(masks.rle_to_mask(masks.union_rles(rles, size_hw)), np.any(five, axis=0))
    areas = masks.rle_intersection_areas(rles[:2], rles[2:])
    assert areas.dtype == np.int64
    assert areas.tolist() == [[int((a & b).sum()) for b in five[2:]] for a in five[:2]]


def test_intersections_are_exact_where_float32_is_not() -> None:
    full = masks.segmentation_to_rle({"size": [5000, 5000], "counts": [1, 24_999_999]}, (5000, 5000))
    assert masks.rle_intersection_areas([full], [full]).tolist() == [[24_999_999]]


def test_intersections_of_nothing_and_of_different_sizes() -> None:
    one, other = (masks.mask_to_rle(np.ones(size, dtype=bool)) for size in ((2, 3), (3, 2)))
    assert masks.rle_intersection_areas([], [one]).shape == (0, 1)
    assert masks.rle_intersection_areas([one, one], []).shape == (2, 0)
    with pytest.raises(RowError, match="size_mismatch"):
        masks.rle_intersection_areas([one], [other])
    with pytest.raises(RowError, match="size_mismatch"):
        masks.union_rles([one, other], (2, 3))
    assert masks.rle_area(masks.union_rles([], (2, 3))) == 0


@QUICK
@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))
def test_a_rectangle_as_polygon_has_its_pixels(x: int, y: int, width: int, height: int) -> None:
    mask = masks.rle_to_mask(masks.polygons_to_rle([[x, y, x + width, y, x + width, y + height, x, y + height]], (40, 40)))
    expected = np.zeros((40, 40), dtype=bool)
    expected[y:y + height, x:x + width] = True
    np.testing.assert_array_equal(mask, expected)


@QUICK
@given(st.floats(6, 14), st.floats(6, 14), st.floats(2, 5), st.integers(3, 9))
def test_polygons_keep_to_the_pixels_whose_centre_they_hold(x: float, y: float, radius: float, corners: int) -> None:
    angles = np.arange(corners) * 2 * np.pi / corners
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    mask = masks.rle_to_mask(masks.polygons_to_rle([points.ravel().tolist()], (20, 20)))
    rows, columns = np.mgrid[:20, :20] + 0.5
    outward = np.stack([np.cos(angles + np.pi / corners), np.sin(angles + np.pi / corners)], axis=1)
    # Signed distance to the farthest edge of a regular polygon: below 0 inside. COCO's rule may differ by up to a pixel at the edge.
    along = (columns - x)[..., None] * outward[:, 0] + (rows - y)[..., None] * outward[:, 1]
    distance = along.max(axis=-1) - radius * np.cos(np.pi / corners)
    assert mask[distance < -1].all() and not mask[distance > 1].any()


def test_two_polygons_are_a_union() -> None:
    left, right = [0, 0, 4, 0, 4, 4, 0, 4], [2, 0, 6, 0, 6, 4, 2, 4]
    assert masks.rle_area(masks.polygons_to_rle([left, right], (8, 8))) == 24


@pytest.mark.parametrize(("segmentation", "reason"), [
    ([], "polygon_invalid"),
    ([[1, 1, 5, 5]], "polygon_invalid"),  # pycocotools would take four numbers for a box
    ([[1, 1, 5, 5, 3]], "polygon_invalid"),
    ([[1, 1, 5, 5, 3, float("nan")]], "polygon_invalid"),
    ([["a", 1, 5, 5, 3, 3]], "polygon_invalid"),
    ([1, 1, 5, 5, 3, 3], "polygon_invalid"),
    ([[1, 1, 500, 5, 3, 8]], "polygon_outside"),
    ([[-10, 1, 5, 5, 3, 8]], "polygon_outside"),
    ([[1, 1, 5, 1e30, 3, 8]], "polygon_outside"),
    ({"size": [10, 12], "counts": [120]}, "size_mismatch"),
    ({"size": [12, 10], "counts": [100]}, "rle_invalid"),
    ({"size": [12, 10], "counts": [-5, 125]}, "rle_invalid"),
    ({"size": [12, 10], "counts": "~~~"}, "rle_invalid"),
    ({"size": [12, 10], "counts": "P"}, "rle_invalid"),
    ({"size": [12, 10], "counts": "é"}, "rle_invalid"),
    ({"size": [12, 10], "counts": 5}, "rle_invalid"),
    ({"size": [12, 10], "counts": "o" * 40 + "1"}, "rle_invalid"),
    ({"counts": [120]}, "rle_invalid"),
    ([{"size": [12, 10], "counts": [120]}, {"size": [12, 10], "counts": "~~~"}], "rle_invalid"),
    ([{"size": [12, 10], "counts": [120]}, [1, 1, 5, 5, 3, 8]], "polygon_invalid"),
    (None, "rle_invalid"),
    ("text", "rle_invalid"),
])
def test_bad_segmentations_say_why(segmentation: object, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        masks.segmentation_to_rle(segmentation, (12, 10))
    assert caught.value.reason == reason


def test_a_polygon_slightly_beyond_the_edge_is_cut_off() -> None:
    rle = masks.polygons_to_rle([[5, 5, 11.5, 5, 11.5, 13, 5, 13]], (12, 10))
    assert masks.rle_box_xywh(rle) == [5, 5, 5, 7]


@QUICK
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_any_text_as_counts_is_refused_or_a_mask(text: str) -> None:
    try:
        rle = masks.segmentation_to_rle({"size": [7, 9], "counts": text}, (7, 9))
    except RowError as error:
        assert error.reason == "rle_invalid"
    else:
        assert masks.rle_to_mask(rle).sum() == masks.rle_area(rle)


def test_pngs_that_are_no_mask() -> None:
    with pytest.raises(RowError, match="mask_unreadable"):
        masks.png_to_mask(b"no")
    with pytest.raises(RowError, match="mask_shape"):
        masks.mask_to_rle(np.zeros((2, 2, 3), dtype=bool))
