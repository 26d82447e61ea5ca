"""The COCO reader, and what it shares with LVIS (instances.py): rows, questions, and everything bad that a file can hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pixellm.data.schema import RejectedRow, Row, region_rle, validate_row
from pixellm.data.sources.coco import CocoSource
from pixellm.errors import ConfigError
from pixellm.masks import mask_to_rle, polygons_to_rle, rle_counts, rle_to_mask
from tests.data.sources.build import build_all
from tests.data.sources.instances_files import CATEGORIES, SQUARE, annotation, image, write_dataset


def read(
    folder: Path, images: list[Any], annotations: list[Any], source: dict | None = None, **photo: Any
) -> tuple[list[Row], list[RejectedRow]]:
    keys = write_dataset(folder, images, annotations, **photo)
    return build_all(CocoSource(**keys, **(source or {})))


def test_polygons_and_both_rle_kinds_give_the_same_region(tmp_path: Path) -> None:
    rle = polygons_to_rle(SQUARE, (12, 16))
    counts = rle_counts(rle).tolist()
    (row,), rejected = read(tmp_path, [image()], [
        annotation(1), annotation(2, segmentation=rle), annotation(3, segmentation={"size": [12, 16], "counts": counts})])
    assert not rejected
    assert row["regions"][0] == row["regions"][1] == row["regions"][2]
    assert (row["regions"][0]["area"], row["regions"][0]["box_xywh"]) == (36, [2, 2, 6, 6])
    assert (row["image_id"], row["source"], row["split"]) == ("1", "coco", "val")
    assert (row["license"], row["url"]) == ("Attribution License http://by", "http://x/1.jpg")
    assert row["image"] == (tmp_path / "images/1.jpg").read_bytes()


def test_a_crowd_region_is_ignored_and_never_a_target(tmp_path: Path) -> None:
    crowd = {"size": [12, 16], "counts": [100, 40, 52]}
    (row,), _ = read(tmp_path, [image()], [annotation(1, segmentation=crowd, iscrowd=1, category_id=2), annotation(2)],
                     {"questions_per_photo": 20, "absent_share": 0.5})
    assert [region["ignore"] for region in row["regions"]] == [True, False]
    assert {index for each in row["conversations"] for target in each["targets"] for index in target} == {1}
    assert not any("dog" in (each["question"] or "") for each in row["conversations"])  # there are some: neither asked for nor absent


@pytest.mark.parametrize(("changes", "reason"), [
    ({"segmentation": [[2, 2, 90, 2, 8, 8]]}, "polygon_outside"),
    ({"segmentation": []}, "polygon_invalid"),
    ({"segmentation": [[3.1, 3.1, 3.1, 3.1, 3.1, 3.1]]}, "empty_mask"),
    ({"segmentation": {"size": [12, 16], "counts": [192]}}, "empty_mask"),
    ({"segmentation": {"size": [16, 12], "counts": [192]}}, "size_mismatch"),
    ({"segmentation": {"size": [12, 16], "counts": "~"}}, "rle_invalid"),
    ({"segmentation": None}, "rle_invalid"),
    ({"image_id": 5}, "unknown_image"),
    ({"image_id": None}, "annotation_invalid"),
])
def test_a_bad_annotation_is_set_aside_and_the_photo_goes_on(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    (row,), (rejected,) = read(tmp_path, [image()], [annotation(1, category_id=2), annotation(2, **changes)])
    assert (rejected.reason, rejected.annotation_id, rejected.source) == (reason, "2", "coco")
    assert [region["category"] for region in row["regions"]] == ["dog"]


def test_a_category_with_a_bad_annotation_is_not_asked_for(tmp_path: Path) -> None:
    annotations = [annotation(1), annotation(2, segmentation=[]), annotation(3, category_id=2)]
    (row,), _ = read(tmp_path, [image()], annotations, {"questions_per_photo": 20})
    assert all("cat" not in (each["question"] or "") for each in row["conversations"])
    assert any("dog" in (each["question"] or "") for each in row["conversations"])


def test_entries_that_are_no_objects_are_set_aside(tmp_path: Path) -> None:
    rows, rejected = read(tmp_path, [image(), 5, {"id": 9}], [annotation(1), "text"])
    assert len(rows) == 1
    assert sorted(each.reason for each in rejected) == ["annotation_invalid", "image_invalid", "image_invalid"]


def test_a_photo_whose_annotations_are_all_bad_is_set_aside(tmp_path: Path) -> None:
    rows, rejected = read(tmp_path, [image()], [annotation(1, segmentation=[])])
    assert not rows
    assert [each.reason for each in rejected] == ["polygon_invalid", "no_usable_annotation"]


@pytest.mark.parametrize(("category_id", "reason"), [(99, "unknown_category"), ([1], "annotation_invalid"), (None, "annotation_invalid")])
def test_a_photo_with_an_annotation_of_no_known_category_is_asked_nothing(tmp_path: Path, category_id: Any, reason: str) -> None:
    rows, rejected = read(tmp_path, [image()], [annotation(1, category_id=2), annotation(2, category_id=category_id)])
    assert not rows and [each.reason for each in rejected] == [reason, "nothing_to_ask"]


def test_a_photo_without_annotations_is_asked_about_what_is_marked_in_others(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, [image(1), image(2)], [annotation(1, 2), annotation(2, 2, category_id=2)], {"questions_per_photo": 5})
    (row,) = (row for row in rows if row["image_id"] == "1")
    assert len(row["conversations"]) == 2  # annotators may not have looked for a giraffe
    assert all(each["targets"] == [] and "{seg}" not in (each["answer"] or "{seg}") for each in row["conversations"])


@pytest.mark.parametrize(("break_photo", "reason"), [
    (lambda file: file.unlink(), "photo_missing"),
    (lambda file: file.write_bytes(b"not a photo"), "photo_format"),
    (lambda file: file.write_bytes(file.read_bytes()[:-100]), "photo_unreadable"),
    (lambda file: file.write_bytes(b""), "photo_format"),
])
def test_a_bad_photo_is_set_aside_and_the_others_go_on(tmp_path: Path, break_photo: Any, reason: str) -> None:
    images = [image(number) for number in range(1, 40)]
    keys = write_dataset(tmp_path, images, [annotation(number, number) for number in range(1, 40)])
    break_photo(tmp_path / "images/20.jpg")
    rows, (rejected,) = build_all(CocoSource(**keys))
    assert [row["image_id"] for row in rows] == [str(number) for number in range(1, 40) if number != 20]
    assert (rejected.image_id, rejected.reason, rejected.annotation_id) == ("20", reason, None)


def test_a_photo_of_another_size_is_set_aside(tmp_path: Path) -> None:
    rows, (rejected,) = read(tmp_path, [image(height=13)], [annotation(1)])
    assert not rows and rejected.reason == "size_mismatch"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("annotated", ["upright", "stored"])
def test_exif_orientation_turns_size_and_masks_annotated_on_stored_pixels(tmp_path: Path, orientation: int, annotated: str) -> None:
    """The corner that is marked on the stored pixels has to be where Pillow puts that corner."""
    stored = np.zeros((12, 16), dtype=bool)
    stored[1:4, 2:8] = True
    tagged = Image.fromarray(stored.astype(np.uint8))
    tagged.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(tagged)) > 0
    swaps = orientation >= 5
    mask = upright if annotated == "upright" or not swaps else stored
    (row,), _ = read(tmp_path, [image(height=mask.shape[0], width=mask.shape[1])], [annotation(1, segmentation=mask_to_rle(mask))],
                     height=12, width=16, orientation=orientation)
    assert (row["height"], row["width"]) == ((16, 12) if swaps else (12, 16))
    np.testing.assert_array_equal(rle_to_mask(region_rle(row["regions"][0])), upright)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(tmp_path: Path) -> None:
    images = [image(number) for number in range(1, 11)]
    annotations = [annotation(10 * number + category, number, category_id=category) for number in range(1, 11) for category in (1, 2)]
    rows = {seed: read(tmp_path, images, annotations, {"seed": seed})[0] for seed in (0, 1)}
    assert rows[0] == read(tmp_path, images[::-1], annotations, {"seed": 0})[0][::-1]
    assert rows[0] != rows[1]


def test_the_split_comes_from_the_file_name_or_the_key(tmp_path: Path) -> None:
    assert read(tmp_path, [image()], [annotation(1)], {"split": "tiny"})[0][0]["split"] == "tiny"
    keys = write_dataset(tmp_path, [image()], [])
    (tmp_path / "instances_val2017.json").rename(tmp_path / "all.json")
    with pytest.raises(ConfigError, match="split="):
        CocoSource(**keys | {"annotations": str(tmp_path / "all.json")}).plan()


@pytest.mark.parametrize(("content", "message"), [
    ("{", "truncated"), ("[]", "Expected `object`, got `array`"), ('{"images": []}', "missing required field `annotations`"),
    (json.dumps({"images": [], "annotations": [], "categories": [{"id": 1}]}), "missing required field `name`"),
])
def test_a_file_that_is_no_instances_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    keys = write_dataset(tmp_path, [image()], [])
    (tmp_path / "instances_val2017.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        CocoSource(**keys).plan()


def test_missing_inputs_are_errors_at_once(tmp_path: Path) -> None:
    keys = write_dataset(tmp_path, [image()], [])
    with pytest.raises(ConfigError, match=r"missing: annotations \(looked for .*none_val.json\)"):
        CocoSource(**keys | {"annotations": str(tmp_path / "none_val.json")}).plan()
    with pytest.raises(ConfigError, match=r"missing: input"):
        CocoSource(**keys | {"input": str(tmp_path / "none")}).plan()


def test_version_and_number_of_rows_come_from_the_file(tmp_path: Path) -> None:
    plan = CocoSource(**write_dataset(tmp_path, [image(1), image(2)], [])).plan()
    changed = CocoSource(**write_dataset(tmp_path / "b", [image(1)], [], CATEGORIES[:1])).plan()
    assert (plan.records.num_rows, changed.records.num_rows) == (2, 1)
    assert plan.version.startswith("sha256:") and plan.version != changed.version


def test_real_coco_photos(shared_dir: Path) -> None:
    folder = shared_dir / "data/coco_permissive"
    source = CocoSource(input=str(folder / "images"), annotations=str(folder / "instances_val2017.json"))
    rows, rejected = build_all(source)
    assert len(rows) == 68 and not rejected
    assert sum(len(row["regions"]) for row in rows) == 586
    annotated = {str(each["id"]): each for each in json.loads((folder / "instances_val2017.json").read_text())["images"]}
    for row in rows:
        validate_row(row)
        assert row["url"] == annotated[row["image_id"]]["coco_url"]
        assert row["license"] and row["license"].startswith("Attribution")


@pytest.mark.parametrize(("changes", "note"), [
    ({"licenses": ""}, "licenses is a str"), ({"licenses": ["", 4]}, None), ({"licenses": None}, None), ({"info": 5}, None),
    ({"categories": [each | {"synonyms": None, "supercategory": 7} for each in CATEGORIES]}, "supercategory of 3 categories"),
])
def test_a_side_field_of_another_kind_is_ignored_and_told(tmp_path: Path, changes: dict[str, Any], note: str | None) -> None:
    odd = image(coco_url=5, flickr_url=None, license=[4], date_captured={})
    keys = write_dataset(tmp_path, [odd], [annotation(1, area=None, attributes=5, bbox=None)])
    file = tmp_path / "instances_val2017.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    rows, rejected = build_all(CocoSource(**keys))
    assert len(rows) == 1 and not rejected
    assert CocoSource(**keys).plan().notes == ([f"ignored: {note}"] if note else [])
