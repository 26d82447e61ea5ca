"""The PACO-LVIS reader, and with it what it shares with Pascal-Part (part_masks.py)."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pixellm.data.prompts import fill_conversation
from pixellm.data.schema import RejectedRow, Row, region_rle
from pixellm.data.sources.paco import PacoSource
from pixellm.data.sources.part_masks import PartName, to_part_name
from pixellm.errors import ConfigError
from pixellm.masks import mask_to_rle, rle_counts, rle_to_mask
from tests.data.rows import make_photo
from tests.data.sources.build import build_all

CATEGORIES = [{"id": 207, "name": "car_(automobile)", "supercategory": "OBJECT"},
              {"id": 2100, "name": "car_(automobile):door_handle", "supercategory": "PART"}]


def drawn(*box: int) -> np.ndarray:
    """bool (12, 16): an ellipse that fills the pixels from (left, top) to (right, bottom)."""
    image = Image.new("1", (16, 12))
    ImageDraw.Draw(image).ellipse(box, fill=1)
    return np.array(image)


CAR, OTHER_CAR, HANDLE = drawn(1, 1, 8, 9), drawn(9, 2, 15, 10), drawn(3, 3, 5, 6)


def image(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"train2017/{number:012}.jpg", "height": 12, "width": 16, "neg_category_ids": [],
            "not_exhaustive_category_ids": [], "license": 3, "coco_url": f"http://x/{number:012}.jpg"} | changes


def annotation(number: int, mask: np.ndarray, category_id: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": category_id, "obj_ann_id": 1, "attribute_ids": [],
            "segmentation": {"size": [12, 16], "counts": rle_counts(mask_to_rle(mask)).tolist()}} | changes


ANNOTATIONS = [annotation(1, CAR, 207), annotation(2, OTHER_CAR, 207), annotation(3, HANDLE, 2100)]


def write_files(root: Path, images: list[Any], annotations: list[Any], **photo: Any) -> PacoSource:
    (root / "coco/train2017").mkdir(parents=True, exist_ok=True)
    for each in images:
        if isinstance(each, dict):
            (root / "coco/train2017" / f"{each.get('id', 0):012}.jpg").write_bytes(make_photo(**photo))
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES, "part_categories": [], "attributes": []}
    (root / "paco_lvis_v1_train.json").write_text(json.dumps(content))
    return PacoSource(input=str(root), photos=str(root / "coco"), split="train")


def read(root: Path, images: list[Any], annotations: list[Any], **photo: Any) -> tuple[list[Row], list[RejectedRow]]:
    return build_all(write_files(root, images, annotations, **photo))


def asked(row: Row) -> set[tuple[int, ...]]:
    return {tuple(target) for each in row["conversations"] for target in each["targets"]}


def test_each_annotation_is_a_region_and_each_class_a_target(tmp_path: Path) -> None:
    (row,), rejected = read(tmp_path, [image()], ANNOTATIONS)
    assert not rejected
    assert (row["image_id"], row["source"], row["split"], row["url"]) == ("1", "paco", "train", "http://x/000000000001.jpg")
    assert row["image"] == (tmp_path / "coco/train2017/000000000001.jpg").read_bytes()
    assert [(each["category"], each["description"]) for each in row["regions"]] == [
        ("car", None), ("car", None), ("car door handle", "door handle of the car")]
    for region, mask in zip(row["regions"], (CAR, OTHER_CAR, HANDLE), strict=True):
        np.testing.assert_array_equal(rle_to_mask(region_rle(region)), mask)
    assert asked(row) == {(0, 1), (2,)}


def test_the_text_says_a_part_in_both_ways(tmp_path: Path) -> None:
    (row,), _ = read(tmp_path, [image()], ANNOTATIONS)
    conversation = next(each for each in row["conversations"] if [2] in each["targets"])
    texts = [fill_conversation(conversation, row["regions"], number) for number in range(40)]
    assert all("car door handle" in question for question, _ in texts)
    described = ["door handle of the car" in answer for _, answer in texts]
    assert any(described) and not all(described)
    assert all(said or "car door handle" in answer for said, (_, answer) in zip(described, texts, strict=True))


def test_masks_on_the_stored_pixels_of_a_turned_photo_are_turned_with_it(tmp_path: Path) -> None:
    (row,), _ = read(tmp_path, [image()], ANNOTATIONS, orientation=8)
    np.testing.assert_array_equal(rle_to_mask(region_rle(row["regions"][2])), np.rot90(HANDLE))


def test_classes_that_are_not_marked_completely_are_not_asked_for(tmp_path: Path) -> None:
    (row,), _ = read(tmp_path, [image(not_exhaustive_category_ids=[207, 9999])], ANNOTATIONS)
    assert len(row["regions"]) == 3 and asked(row) == {(2,)}


@pytest.mark.parametrize(("changes", "reason"), [
    ({"segmentation": []}, "polygon_invalid"),  # PACO's way to say that a box has no mask
    ({"segmentation": {"size": [12, 16], "counts": [192]}}, "empty_mask"),
    ({"segmentation": {"size": [12, 16], "counts": [10, 5]}}, "rle_invalid"),
    ({"segmentation": {"size": [16, 12], "counts": [100, 92]}}, "size_mismatch"),
    ({"segmentation": None}, "rle_invalid"),
    ({"image_id": 7}, "unknown_image"),
])
def test_a_bad_annotation_is_set_aside_and_the_others_stay(tmp_path: Path, changes: dict, reason: str) -> None:
    (row,), (rejected,) = read(tmp_path, [image()], [ANNOTATIONS[0], ANNOTATIONS[1] | changes, ANNOTATIONS[2]])
    assert (rejected.reason, rejected.annotation_id, rejected.source) == (reason, "2", "paco")
    assert [each["category"] for each in row["regions"]] == ["car", "car door handle"]
    assert asked(row) == ({(0,), (1,)} if reason == "unknown_image" else {(1,)})  # "every car" would miss one


@pytest.mark.parametrize(("category_id", "reason"), [(4, "unknown_category"), ("car", "annotation_invalid"), (None, "annotation_invalid")])
def test_a_photo_with_an_annotation_of_no_known_category_is_asked_nothing(tmp_path: Path, category_id: Any, reason: str) -> None:
    rows, rejected = read(tmp_path, [image()], [ANNOTATIONS[0], ANNOTATIONS[1] | {"category_id": category_id}])
    assert not rows and [each.reason for each in rejected] == [reason, "nothing_to_ask"]


def test_what_is_wrong_with_one_photo_sets_that_photo_aside(tmp_path: Path) -> None:
    images = [image(), image(2), image(3, height=11), image(4, height=0), image(5), image(6), image(1), {"id": 8, "height": 12}, "text"]
    annotations = ANNOTATIONS + [annotation(20 + number, CAR, 207, image_id=number) for number in (2, 3, 4)]
    source = write_files(tmp_path, images, [*annotations, annotation(30, CAR, 207, image_id=6, segmentation=[])])
    (tmp_path / "coco/train2017/000000000002.jpg").unlink()
    rows, rejected = build_all(source)
    assert [row["image_id"] for row in rows] == ["1"]
    reasons = [(each.image_id, each.reason, each.annotation_id) for each in rejected]
    assert sorted(reasons, key=repr) == sorted([
        ("2", "photo_missing", None), ("3", "size_mismatch", None), ("4", "image_invalid", None), ("4", "unknown_image", "24"),
        ("5", "nothing_to_ask", None), ("6", "polygon_invalid", "30"), ("6", "no_usable_annotation", None), ("1", "duplicate_id", None),
        ("8", "image_invalid", None), ("None", "image_invalid", None)], key=repr)


def test_the_builder_goes_to_workers_as_it_is(tmp_path: Path) -> None:
    plan = write_files(tmp_path, [image()], ANNOTATIONS).plan()
    assert pickle.loads(pickle.dumps(plan.builder)) == plan.builder


def test_files_that_are_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"photos \(looked for /nowhere\).*/paco_lvis_v1_val\.json, .*/annotations/.*paco_lvis_v1\.zip"):
        PacoSource(input=str(tmp_path), photos="/nowhere", split="val").plan()
    source = write_files(tmp_path, [image()], [])
    (tmp_path / "paco_lvis_v1_train.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(ConfigError, match="categories"):
        source.plan()


@pytest.mark.parametrize(("category", "expected"), [
    ("trash_can", PartName("trash can")),
    ("pan_(for_cooking)", PartName("pan")),
    ("tape_(sticky_cloth_or_paper):roll", PartName("tape roll", "roll of the tape")),
    ("bus:license plate", PartName("bus license plate", "license plate of the bus")),
])
def test_names_as_people_say_them(category: str, expected: PartName) -> None:
    assert to_part_name(category) == expected
