"""muse.py: MUSE's JSON form to rows."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pixellm.data.prompts import fill_conversation
from pixellm.data.schema import region_rle
from pixellm.data.sources.muse import MuseAnnotation, MuseEntry, MuseSource
from pixellm.errors import ConfigError
from pixellm.masks import mask_to_rle, rle_to_mask
from tests.data.rows import make_photo
from tests.data.sources.build import build_all

SQUARE = {"segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]], "bbox": [2, 2, 6, 6], "category_id": 3, "category_name": "cup",
          "rephrased_name": "a white cup"}
BITMAP = np.zeros((12, 16), dtype=bool)
BITMAP[1:4, 9:14] = True
RLE = {"segmentation": mask_to_rle(BITMAP), "bbox": [9, 1, 5, 3], "category_id": 4, "category_name": "spoon"}
URL = "http://images.cocodataset.org/train2017/000000000030.jpg"


def entry(**changes: Any) -> dict[str, Any]:
    return {"coco_url": URL, "height": 12, "width": 16, "ann_list": [SQUARE, RLE], "questions": ["What holds tea, what stirs it?"],
            "answers": [[SQUARE, RLE]], "text_answers": ["The cup {seg} holds it, the spoon {seg} stirs."]} | changes


def write_muse(folder: Path, entries: list[Any], **photo: Any) -> MuseSource:
    for name in ("train2017/000000000030.jpg", "val2017/000000000031.jpg", "train2014/COCO_train2014_000000000032.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(make_photo(**photo))
    (folder / "muse_val.json").write_text(json.dumps(entries))
    return MuseSource(input=str(folder), split="val")


def test_polygons_and_rle_become_regions_with_exact_pixels(tmp_path: Path) -> None:
    (row,), rejected = build_all(write_muse(tmp_path, [entry()]))
    assert not rejected and (row["image_id"], row["source"], row["split"], row["url"]) == ("30", "muse", "val", URL)
    square = np.zeros((12, 16), dtype=bool)
    square[2:8, 2:8] = True
    for region, expected in zip(row["regions"], (square, BITMAP), strict=True):
        np.testing.assert_array_equal(rle_to_mask(region_rle(region)), expected)
    assert [(each["category"], each["description"]) for each in row["regions"]] == [("cup", "a white cup"), ("spoon", None)]
    assert row["conversations"] == [{"question": "What holds tea, what stirs it?", "targets": [[0], [1]], "task": "reasoning",
                                     "answer": "The cup {seg} holds it, the spoon {seg} stirs."}]


def test_both_ways_to_name_a_photo(tmp_path: Path) -> None:
    by_name = {key: value for key, value in entry().items() if key != "coco_url"} | {"file_name": "COCO_train2014_000000000032.jpg"}
    by_url = entry(coco_url=URL.replace("train2017/000000000030", "val2017/000000000031"))
    rows, rejected = build_all(write_muse(tmp_path, [by_url, by_name]))
    assert not rejected and [row["image_id"] for row in rows] == ["31", "32"]


@pytest.mark.parametrize("text_answers", [None, [None]])
def test_a_missing_text_is_drawn_from_descriptions_and_names(tmp_path: Path, text_answers: Any) -> None:
    raw = entry(text_answers=text_answers)
    if text_answers is None:
        del raw["text_answers"]
    (row,), _ = build_all(write_muse(tmp_path, [raw]))
    (conversation,) = row["conversations"]
    assert conversation["answer"] is None
    answers = [fill_conversation(conversation, row["regions"], key)[1] for key in range(100)]
    assert all(answer.count("{seg}") == 2 and "spoon" in answer for answer in answers)
    assert {"a white cup" in answer for answer in answers} == {True, False}
    assert {"{seg} and {seg}" in answer for answer in answers} == {True, False}  # joint and separate


def test_entries_of_one_photo_are_one_row_and_share_its_regions(tmp_path: Path) -> None:
    second = entry(questions=["Which is white?"], answers=[[SQUARE]], text_answers=["The cup {seg}."])
    (row,), rejected = build_all(write_muse(tmp_path, [entry(), second]))
    assert not rejected and len(row["regions"]) == 2
    assert [each["targets"] for each in row["conversations"]] == [[[0], [1]], [[0]]]


@pytest.mark.parametrize(("changes", "reason"), [
    ({"text_answers": ["The cup {seg} only."]}, "seg_count_mismatch"),
    ({"questions": ["What {seg}?"]}, "seg_in_question"),
    ({"questions": [" "]}, "empty_text"),
    ({"answers": [[SQUARE, RLE | {"segmentation": [[1, 1, 2, 2]]}]]}, "polygon_invalid"),
    ({"answers": [[SQUARE, RLE | {"category_name": ""}]]}, "empty_text"),
    ({"answers": [[]], "text_answers": [None]}, "no_template"),
])
def test_a_bad_question_is_set_aside_and_the_photo_goes_on(tmp_path: Path, changes: dict, reason: str) -> None:
    (row,), (rejected,) = build_all(write_muse(tmp_path, [entry(**changes), entry()]))
    assert (rejected.image_id, rejected.reason, rejected.annotation_id) == ("30", reason, "0/0")
    assert len(row["conversations"]) == 1


@pytest.mark.parametrize(("changes", "reason", "annotation_id"), [
    ({"answers": []}, "annotation_invalid", "0"),
    ({"text_answers": []}, "annotation_invalid", "0"),
    ({"height": 0}, "image_invalid", "0"),
    ({"coco_url": "http://x/train2017/000000000099.jpg"}, "photo_missing", None),
])
def test_a_bad_entry_is_set_aside_and_the_rest_goes_on(tmp_path: Path, changes: dict, reason: str, annotation_id: str | None) -> None:
    rows, (rejected,) = build_all(write_muse(tmp_path, [entry(**changes), entry()]))
    assert (rejected.reason, rejected.annotation_id) == (reason, annotation_id) and len(rows) == 1


def test_a_photo_without_usable_questions_or_of_another_size_is_set_aside(tmp_path: Path) -> None:
    rows, rejected = build_all(write_muse(tmp_path, [entry(questions=[""])]))
    assert not rows and [each.reason for each in rejected] == ["empty_text", "no_usable_annotation"]
    rows, rejected = build_all(write_muse(tmp_path, [entry(height=13), entry()]))
    assert not rows and [(each.reason, each.annotation_id) for each in rejected] == [("size_mismatch", "1"), ("size_mismatch", None)]


def test_masks_on_stored_pixels_are_turned(tmp_path: Path) -> None:
    (row,), _ = build_all(write_muse(tmp_path, [entry()], orientation=6))
    assert (row["height"], row["width"]) == (16, 12)
    np.testing.assert_array_equal(rle_to_mask(region_rle(row["regions"][1])), np.rot90(BITMAP, -1))


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotations .*muse_train\.json.*photos .*none"):
        MuseSource(input=str(tmp_path), split="train", photos=str(tmp_path / "none")).plan()
    (tmp_path / "muse_train.json").write_text("{")
    with pytest.raises(ConfigError, match="is not such an annotation file"):
        MuseSource(input=str(tmp_path), split="train").plan()


def test_what_is_encoded_is_decoded_again() -> None:
    written = MuseEntry(12, 16, ["Which?"], [[MuseAnnotation([[2, 2, 8, 2, 8, 8]], "cup", "a cup", [2, 2, 6, 6], 3)]], file_name="a.jpg")
    assert msgspec.json.decode(msgspec.json.encode(written), type=MuseEntry) == written


def test_real_coco_photos_in_the_form_of_muse(shared_dir: Path, tmp_path: Path) -> None:
    content = json.loads((shared_dir / "data/coco_permissive/instances_val2017.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    entries = []
    for image in content["images"][:20]:
        things = [{**each, "category_name": names[each["category_id"]]} for each in content["annotations"]
                  if each["image_id"] == image["id"] and not each["iscrowd"]][:4]
        if things:
            entries.append({"coco_url": image["coco_url"], "height": image["height"], "width": image["width"], "ann_list": things,
                            "questions": ["What is here?"], "answers": [things], "text_answers": [None]})
    (tmp_path / "muse_train.json").write_text(json.dumps(entries))
    source = MuseSource(input=str(tmp_path), split="train", photos=str(shared_dir / "data/coco_permissive/images"))
    rows, rejected = build_all(source)
    assert not rejected and len(rows) == len(entries) > 10
    areas = [region["area"] for row in rows for region in row["regions"]]
    annotated = [thing["area"] for each in entries for thing in each["ann_list"]]
    # COCO states a polygon's geometric area, a mask counts pixels: measured 2.9% apart at most, a small thing
    assert len(areas) == len(annotated) and max(abs(pixels / area - 1) for pixels, area in zip(areas, annotated, strict=True)) < 0.05
