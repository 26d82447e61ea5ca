"""schema.py: what a row must fulfil."""

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pixellm.data.schema import ROW_SCHEMA, build_region, read_photo_info, region_rle, validate_row
from pixellm.errors import RowError
from pixellm.masks import mask_to_rle, rle_to_mask
from tests.data.rows import make_photo, make_row


def conversation(**changes: Any) -> list[dict[str, Any]]:
    return [dict(make_row()["conversations"][0]) | changes]


def region(**changes: Any) -> list[dict[str, Any]]:
    regions = [dict(each) for each in make_row()["regions"]]
    regions[0] |= changes
    return regions


def test_a_good_row_is_valid_and_fits_the_schema() -> None:
    row = make_row()
    validate_row(row)
    table = pa.Table.from_pylist([row], schema=ROW_SCHEMA)
    assert table.to_pylist() == [row]


def test_rows_without_regions_and_without_text_are_valid() -> None:
    for row in (make_row(regions=[], conversations=conversation(answer="Nobody.", targets=[], task="vqa")),
                make_row(conversations=conversation(question=None, answer=None, task="semantic")),
                make_row(conversations=conversation(answer=None))):
        assert validate_row(row) is None  # it raises for a row that is not valid


@pytest.mark.parametrize(("changes", "reason"), [
    ({"image_id": ""}, "missing_id"),
    ({"image": b""}, "photo_format"),
    ({"image": b"<html>"}, "photo_format"),
    ({"image": make_photo()[:-60]}, "photo_unreadable"),
    ({"image": make_photo(image_format="PNG")[:-60]}, "photo_unreadable"),
    ({"image": make_photo(image_format="GIF")}, "photo_format"),
    ({"height": 16, "width": 12}, "size_mismatch"),
    ({"image": make_photo(orientation=6)}, "size_mismatch"),
    ({"regions": region(rle_size=[16, 12])}, "size_mismatch"),
    ({"regions": region(rle_counts="zz~")}, "rle_invalid"),
    ({"regions": region(rle_counts=mask_to_rle(np.zeros((12, 16), dtype=bool))["counts"])}, "empty_mask"),
    ({"regions": region(area=31)}, "area_mismatch"),
    ({"regions": region(box_xywh=[0, 0, 1, 1])}, "box_mismatch"),
    ({"regions": region(category=" ")}, "empty_text"),
    ({"conversations": []}, "no_conversation"),
    ({"conversations": conversation(task="guess")}, "unknown_task"),
    ({"conversations": conversation(question=" ")}, "empty_text"),
    ({"conversations": conversation(question="Where is {seg}?")}, "seg_in_question"),
    ({"conversations": conversation(answer="The cat {seg}.")}, "seg_count_mismatch"),
    ({"conversations": conversation(targets=[[0]])}, "seg_count_mismatch"),
    ({"conversations": conversation(targets=[[0], []])}, "empty_target"),
    ({"conversations": conversation(targets=[[0], [2]])}, "target_index"),
    ({"conversations": conversation(targets=[[0], [-1]])}, "target_index"),
    ({"regions": region(ignore=True)}, "target_index"),
    ({"conversations": conversation(question=None)}, "no_template"),
    ({"conversations": conversation(answer=None, targets=[])}, "no_template"),
])
def test_bad_rows_say_why(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        validate_row(make_row(**changes))
    assert caught.value.reason == reason
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, str(again)) == (reason, str(caught.value))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_the_size_is_that_of_the_upright_photo(image_format: str, orientation: int | None) -> None:
    info = read_photo_info(make_photo(image_format=image_format, orientation=orientation))
    assert info.stored_hw == (12, 16)
    assert info.size_hw == ((16, 12) if (orientation or 1) >= 5 else (12, 16))
    assert info.orientation == (orientation or 1)


def test_build_region_measures_the_mask() -> None:
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:3, 2:6] = True
    built = build_region(mask_to_rle(mask), "cat", ignore=True)
    assert (built["area"], built["box_xywh"], built["ignore"], built["description"]) == (8, [2, 1, 4, 2], True, None)
    np.testing.assert_array_equal(rle_to_mask(region_rle(built)), mask)
    with pytest.raises(RowError, match="empty_mask"):
        build_region(mask_to_rle(~mask & mask), "cat")
