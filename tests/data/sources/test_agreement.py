"""A mask is held against its own box, area and photo, in every source that has boxes; a file of another form says which."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pixellm.data.dry_run import dry_run
from pixellm.data.parts import ShardOptions
from pixellm.data.schema import RejectedRow, Row, region_rle
from pixellm.data.sources.agreement import common_way
from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.paco import PacoSource
from pixellm.data.sources.refcoco import RefcocoSource
from pixellm.masks import mask_to_rle, rle_box_xywh, rle_counts, rle_to_mask, segmentation_to_rle
from tests.data.sources import refer_files
from tests.data.sources.build import build_all
from tests.data.sources.instances_files import annotation, image, write_dataset

HW = (48, 64)
BOX = [10, 4, 30, 20]
POLYGON = [10, 4, 40, 4, 40, 24, 10, 24]
MASK = np.zeros(HW, dtype=bool)
MASK[4:24, 10:40] = True


def read(folder: Path, changes: dict[str, Any], keys: dict[str, Any] | None = None) -> tuple[list[Row], list[RejectedRow]]:
    marked = annotation(1, segmentation=[POLYGON], bbox=BOX, area=600) | changes
    source = write_dataset(folder, [image(height=HW[0], width=HW[1])], [marked], height=HW[0], width=HW[1])
    return build_all(CocoSource(**source, **(keys or {})))


def in_shares(polygon: list[float]) -> list[float]:
    return [value / HW[1 - index % 2] for index, value in enumerate(polygon)]


ROWS_RLE = {"size": list(HW), "counts": rle_counts(mask_to_rle(MASK.T)).tolist()}  # run along the rows
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"segmentation": [in_shares(POLYGON)]}, "coordinates=normalised"),
    ({"segmentation": [in_shares(POLYGON)], "bbox": in_shares(BOX)}, "coordinates=normalised"),
    ({"segmentation": [in_shares(POLYGON)], "bbox": None}, "coordinates=normalised"),
    ({"segmentation": [[4, 10, 4, 40, 24, 40, 24, 10]]}, "coordinates=swapped"),
    ({"segmentation": ROWS_RLE}, "coordinates=swapped"),
]


@pytest.mark.parametrize(("changes", "way"), FORMS)
def test_a_mask_in_another_form_is_set_aside_and_read_by_saying_so(tmp_path: Path, changes: dict[str, Any], way: str) -> None:
    rows, (rejected, *_) = read(tmp_path, changes)
    assert not rows and rejected.reason == "mask_disagrees" and rejected.detail.endswith(f"they agree with {way}")
    key, _, value = way.partition("=")
    (row,), rejected_then = read(tmp_path, changes, {key: value})
    assert not rejected_then
    np.testing.assert_array_equal(rle_to_mask(region_rle(row["regions"][0])), MASK)


def test_a_box_of_two_corners_is_told(tmp_path: Path) -> None:
    far = {"segmentation": [[30, 10, 40, 10, 40, 20, 30, 20]], "bbox": [30, 10, 40, 20], "area": None}
    _, (rejected, _) = read(tmp_path, far)
    assert "the mask's box is [30, 10, 10, 10]" in rejected.detail and "bbox [30, 10, 40, 20]" in rejected.detail
    assert rejected.detail.endswith("boxes=xyxy")
    rows, _ = read(tmp_path, far, {"boxes": "xyxy"})
    assert len(rows) == 1


@pytest.mark.parametrize("changes", [
    {"bbox": [50, 30, 10, 12]}, {"segmentation": [[50, 30, 52, 30, 52, 32, 50, 32]]}, {"segmentation": [[10, 4, 12, 4, 12, 6, 10, 6]]},
    {"bbox": None, "area": 9}, {"bbox": None, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}])
def test_a_mask_at_another_place_or_size_is_set_aside(tmp_path: Path, changes: dict[str, Any]) -> None:
    rows, (rejected, _) = read(tmp_path, changes)
    assert not rows and rejected.reason == "mask_disagrees" and "correct the annotation" in rejected.detail
    assert len(read(tmp_path, changes, {"boxes": "unchecked"})[0]) == 1, "amodal boxes are meant to differ"


@pytest.mark.parametrize("changes", [
    {"bbox": None, "area": None}, {"bbox": [10, 4, -30, 20]}, {"bbox": [0, 0, 0, 0]}, {"bbox": "10 4 30 20"}, {"bbox": [10, 4]},
    {"bbox": [10.4, 3.6, 29.5, 20.7]}, {"bbox": {"x": 1}}, {"area": "600"}, {"area": float("inf"), "bbox": None}, {"bbox": [1e400] * 4},
    {"bbox": None, "area": 0}, {"bbox": in_shares(BOX)}, {"bbox": None, "area": 0.2}, {"bbox": [None] * 4}])
def test_a_box_or_area_that_says_nothing_or_agrees_is_no_reason(tmp_path: Path, changes: dict[str, Any]) -> None:
    (row,), rejected = read(tmp_path, changes)
    assert not rejected and row["regions"][0]["area"] == 600


@pytest.mark.parametrize("orientation", range(2, 9))
def test_masks_on_stored_pixels_in_a_file_of_upright_sizes(tmp_path: Path, orientation: int) -> None:
    tagged = Image.fromarray(MASK.astype(np.uint8))
    tagged.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(tagged)) > 0
    height, width = upright.shape
    marked = annotation(1, segmentation=[POLYGON], bbox=rle_box_xywh(mask_to_rle(upright)))
    keys = write_dataset(tmp_path, [image(height=height, width=width)], [marked], height=HW[0], width=HW[1], orientation=orientation)
    _, (rejected, *_) = build_all(CocoSource(**keys))
    assert rejected.reason in ("mask_disagrees", "polygon_outside")
    ways = ("coordinates=stored", "coordinates=swapped") if orientation == 5 else ("coordinates=stored",)  # 5 exchanges x and y
    assert rejected.reason == "polygon_outside" or rejected.detail.endswith(ways)
    (row,), rejected_then = build_all(CocoSource(**keys, coordinates="stored"))
    assert not rejected_then
    np.testing.assert_array_equal(rle_to_mask(region_rle(row["regions"][0])), upright)


def test_a_whole_file_says_in_which_way_it_disagrees(tmp_path: Path) -> None:
    images = [image(number, height=HW[0], width=HW[1]) for number in range(1, 7)]
    wrong = [annotation(number, number, segmentation=[in_shares(POLYGON)], bbox=BOX) for number in range(1, 6)]
    keys = write_dataset(tmp_path, images, [*wrong, annotation(6, 6, segmentation=[POLYGON], bbox=BOX)], height=HW[0], width=HW[1])
    found = dry_run(CocoSource(**keys), ShardOptions())
    assert found.problem and "5 of 5 masks that disagree with their box or area would agree with coordinates=normalised" in found.problem
    assert common_way([]) is None and common_way([RejectedRow("1", "coco", "mask_disagrees", "nothing fits")]) is None
    assert dry_run(CocoSource(**keys, coordinates="normalised"), ShardOptions()).rejected[0].reason == "polygon_outside", "the right one"


def test_a_box_that_an_exporter_puts_everywhere_is_not_compared(tmp_path: Path) -> None:
    images = [image(number, height=HW[0], width=HW[1]) for number in (1, 2)]
    other = [[40, 30, 60, 30, 60, 44, 40, 44]]
    marked = [annotation(1, 1, segmentation=[POLYGON], bbox=BOX, area=600), annotation(2, 2, segmentation=other, bbox=BOX, area=600)]
    source = CocoSource(**write_dataset(tmp_path, images, marked, height=HW[0], width=HW[1]))
    rows, rejected = build_all(source)
    assert len(rows) == 2 and not rejected and "1 boxes stand at several different masks" in source.plan().notes[0]
    marked[1]["segmentation"] = [in_shares(other[0])]
    rows, rejected = build_all(CocoSource(**write_dataset(tmp_path, images, marked, height=HW[0], width=HW[1])))
    assert len(rows) == 1 and rejected[0].reason == "mask_disagrees" and rejected[0].detail.endswith("coordinates=normalised")


def test_sources_of_parts_and_expressions_check_too(tmp_path: Path) -> None:
    bad = {"bbox": [9, 8, 6, 3]}
    refer_files.write_refer(tmp_path / "refer", [refer_files.ref(1, 10, "the dog")], [refer_files.annotation(10, **bad)])
    _, rejected = build_all(RefcocoSource(dataset="refcoco", input=str(tmp_path / "refer"), split="train"))
    assert [each.reason for each in rejected] == ["mask_disagrees", "no_usable_annotation"]
    keys = write_dataset(tmp_path / "paco", [image()], [annotation(1, **bad)], categories=[{"id": 1, "name": "car"}])
    content = json.loads(Path(keys["annotations"]).read_text())
    (tmp_path / "paco/paco_lvis_v1_val.json").write_text(json.dumps(content))
    _, rejected = build_all(PacoSource(input=str(tmp_path / "paco"), photos=keys["input"], split="val"))
    assert [each.reason for each in rejected] == ["mask_disagrees", "no_usable_annotation"]


@pytest.mark.parametrize("file", ["coco_permissive/instances_train2017.json", "coco_permissive/instances_val2017.json",
                                  "lvis_permissive/lvis_v0.5_val.json", "mini_permissive/instances_partial.json"])
def test_genuine_annotations_agree(shared_dir: Path, file: str) -> None:
    from pixellm.data.sources.agreement import agrees

    content = json.loads((shared_dir / "data" / file).read_text())
    sizes = {each["id"]: (each["height"], each["width"]) for each in content["images"]}
    assert all(agrees(segmentation_to_rle(each["segmentation"], sizes[each["image_id"]]), each, "xywh") for each in content["annotations"])
