"""shrink.py: photo and masks keep fitting together, and no region gets lost."""

import io

import numpy as np
import pytest
from PIL import Image

from pixellm.data.parts import RowCollector
from pixellm.data.schema import build_region, read_photo_info, region_rle, validate_row
from pixellm.data.shrink import shrink_row
from pixellm.masks import mask_to_rle, rle_to_mask
from tests.data.rows import make_photo, make_row


def make_large_row(masks: list[np.ndarray], **photo):
    height, width = masks[0].shape
    regions = [build_region(mask_to_rle(mask), "cat", ignore=not place) for place, mask in enumerate(masks)]
    targets = [[place] for place in range(1, len(masks))]
    conversation = {"question": "Who?", "answer": " ".join(["A cat {seg}"] * len(targets)), "targets": targets, "task": "reasoning"}
    return make_row(image=make_photo(**{"height": height, "width": width} | photo), height=height, width=width, regions=regions,
                    conversations=[conversation])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_masks_are_on_where_half_of_their_area_was(image_format: str) -> None:
    """At a half of the size each pixel is the mean of 2 x 2, which numpy says too."""
    masks = [np.random.default_rng(seed).random((40, 60)) < 0.5 for seed in range(3)]
    row = make_large_row(masks, image_format=image_format)
    small = shrink_row(row, 30)
    validate_row(small)
    assert (small["height"], small["width"]) == (20, 30) and small["conversations"] == row["conversations"]
    assert [region["ignore"] for region in small["regions"]] == [True, False, False]
    assert Image.open(io.BytesIO(small["image"])).format == image_format
    for mask, region in zip(masks, small["regions"], strict=True):
        expected = mask.reshape(20, 2, 30, 2).mean(axis=(1, 3)) >= 0.5
        np.testing.assert_array_equal(rle_to_mask(region_rle(region)), expected)


def test_a_region_too_small_to_see_keeps_the_pixel_that_it_is_in() -> None:
    dot = np.zeros((400, 600), dtype=bool)
    dot[333, 77] = True
    small = shrink_row(make_large_row([~dot, dot]), 30)
    assert np.argwhere(rle_to_mask(region_rle(small["regions"][1]))).tolist() == [[333 // 20, 77 // 20]]


def test_a_turned_photo_becomes_an_upright_one() -> None:
    mask = np.zeros((60, 40), dtype=bool)  # upright
    mask[:30, :20] = True
    small = shrink_row(make_large_row([mask, mask], height=40, width=60, orientation=6), 30)
    validate_row(small)
    info = read_photo_info(small["image"])
    assert (info.size_hw, info.orientation) == ((30, 20), 1)
    np.testing.assert_array_equal(rle_to_mask(region_rle(small["regions"][0])), mask[::2, ::2])


def test_smaller_photos_stay_as_shipped() -> None:
    row = make_row()
    assert shrink_row(row, 16) is row and shrink_row(row, None) is row


def test_a_row_that_is_wrong_is_set_aside_before_it_is_made_smaller() -> None:
    """A resized mask would fit any photo."""
    mask, other = np.ones((40, 60), dtype=bool), np.ones((20, 60), dtype=bool)
    collector = RowCollector(max_side=30)
    collector.add(make_large_row([mask, mask]))
    collector.add(make_large_row([mask, other]) | {"image_id": "2"})
    collector.add(make_large_row([mask, mask], height=60, width=60) | {"image_id": "3"})
    assert [row["width"] for row in collector.rows] == [30]
    assert [(each.image_id, each.reason) for each in collector.rejected] == [("2", "size_mismatch"), ("3", "size_mismatch")]
