"""The refCOCO reader, and what its family shares (expressions.py): rows, splits, and everything bad that the files can hold."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pixellm.data.schema import RejectedRow, Row
from pixellm.data.sources.refcoco import RefcocoSource
from pixellm.errors import ConfigError
from pixellm.masks import mask_to_rle
from tests.data.sources.build import build_all
from tests.data.sources.refer_files import BOXES, SIZE_HW, annotation, drawn, image, mask, polygon, ref, write_refer

REFS = [ref(1, 10, "the woman on left", "Lady in blue."), ref(2, 11, "dog"), ref(3, 10, "woman", image_id=2, split="val")]
ANNOTATIONS = [annotation(10), annotation(11, category_id=18), annotation(12)]


def read(root: Path, refs: list[Any] = REFS, annotations: list[Any] = ANNOTATIONS, **keys: Any) -> tuple[list[Row], list[RejectedRow]]:
    source = {name: keys.pop(name) for name in ("split", "dataset", "split_by", "photos", "seed") if name in keys and name != "photos"}
    write_refer(root, refs, annotations, **keys, **({"dataset": source["dataset"]} if "dataset" in source else {}))
    return build_all(RefcocoSource(input=str(root), **{"split": "train"} | source))


def test_a_photo_becomes_one_row_with_a_question_per_sentence(tmp_path: Path) -> None:
    (row,), rejected = read(tmp_path)
    assert not rejected
    assert (row["image_id"], row["source"], row["split"]) == ("1", "refcoco", "train")
    assert (row["license"], row["url"]) == ("Attribution License http://by", "http://x/1")
    assert row["image"] == (tmp_path / "images/mscoco/images/train2014/COCO_train2014_000000000001.jpg").read_bytes()
    assert [region["category"] for region in row["regions"]] == ["person", "dog"]
    for region, number in zip(row["regions"], (10, 11), strict=True):
        np.testing.assert_array_equal(mask(region), drawn(number))
    assert [region["area"] for region in row["regions"]] == [25, 36]
    assert [each["targets"] for each in row["conversations"]] == [[[0]], [[0]], [[1]]]
    assert all(each["task"] == "referring" and each["answer"] is None for each in row["conversations"])
    for each, name in zip(row["conversations"], ("woman on left", "Lady in blue", "dog"), strict=True):
        assert name in each["question"] and "the the" not in each["question"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_every_protocol_and_json_give_the_same_rows(tmp_path: Path, protocol: int) -> None:
    from_json = read(tmp_path / "json", file="refs(unc).json")
    assert read(tmp_path / "pickle", protocol=protocol) == from_json


@pytest.mark.parametrize(("dataset", "split_by", "file", "photos"), [
    ("refcoco", "google", "refs(google).p", "images/mscoco/images/train2014"),
    ("refcoco+", None, "refs(unc).p", "images/train2014"),
    ("refcocog", None, "refs(umd).p", "images/train2014"),
    ("refcocog", "google", "refs(google).p", "images/train2014"),
    ("refclef", None, "refs(unc).p", "images/saiapr_tc-12/00/images"),
    ("refclef", "berkeley", "refs(berkeley).p", "images/saiapr_tc-12"),
])
def test_each_dataset_is_found_in_its_place(tmp_path: Path, dataset: str, split_by: str | None, file: str, photos: str) -> None:
    (row,), _ = read(tmp_path, dataset=dataset, split_by=split_by, file=file, photos=photos)
    assert row["source"] == dataset


def test_photos_may_lie_elsewhere_under_the_names_of_2017(tmp_path: Path) -> None:
    write_refer(tmp_path / "refer", REFS, ANNOTATIONS)
    folder = tmp_path / "refer/images/mscoco/images/train2014"
    (tmp_path / "train2017").mkdir()
    (folder / "COCO_train2014_000000000001.jpg").rename(tmp_path / "train2017/000000000001.jpg")
    rows, rejected = build_all(RefcocoSource(input=str(tmp_path / "refer"), photos=str(tmp_path / "train2017"), split="train"))
    assert len(rows) == 1 and not rejected


def test_refclef_has_lists_of_rles(tmp_path: Path) -> None:
    parts = [dict(mask_to_rle(drawn(number))) for number in (10, 11)]
    (row,), _ = read(tmp_path, [ref(1, 7, "both")], [annotation(7, segmentation=parts)], dataset="refclef", photos="images/saiapr_tc-12")
    np.testing.assert_array_equal(mask(row["regions"][0]), drawn(10, 11))


@pytest.mark.parametrize(("split", "expected"), [
    ("train", {"a"}), ("val", {"b"}), ("testA", {"c", "e"}), ("testB", {"d", "e", "f"}), ("testC", {"f"}),
    ("test", {"c", "d", "e", "f", "g"}),
])
def test_splits_are_those_of_refer(tmp_path: Path, split: str, expected: set[str]) -> None:
    splits = {"a": "train", "b": "val", "c": "testA", "d": "testB", "e": "testAB", "f": "testBC", "g": "test"}
    refs = [ref(number, 10, f"thing {name}", split=each) for number, (name, each) in enumerate(splits.items())]
    (row,), _ = read(tmp_path, refs, split=split)
    assert {name for name in splits for each in row["conversations"] if f"thing {name}" in each["question"]} == expected
    assert len(row["conversations"]) == len(expected) and row["split"] == split


def test_a_split_without_references_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"split=testA; it has train \(2\), val \(1\)"):
        read(tmp_path, split="testA")


@pytest.mark.parametrize(("bad", "reason", "annotation_id"), [
    (ref(9, 99, "no such annotation"), "unknown_annotation", "9"),
    (ref(9, 20, "of another photo"), "unknown_annotation", "9"),
    (ref(9, "ten", "text as id"), "annotation_invalid", "9"),
    (ref(9, 10, "a", sentences=[{"raw": "no sentence"}]), "annotation_invalid", "9"),
    (ref(9, 10, "  . "), "empty_text", "9/90"),
    (ref(9, 10, "the {seg} token"), "seg_in_question", "9/90"),
    (ref(9, 12, "bad polygon"), "polygon_outside", "12"),
    (ref(9, 13, "bad category"), "unknown_category", "13"),
    (ref(9, 14, "no pixel"), "empty_mask", "14"),
    (ref(9, 15, "no mask"), "rle_invalid", "15"),
    (ref(9, 16, "broken entry"), "unknown_annotation", "9"),
    ("text", "annotation_invalid", "None"),
])
def test_a_bad_reference_is_set_aside_and_the_others_go_on(tmp_path: Path, bad: Any, reason: str, annotation_id: str) -> None:
    annotations = [*ANNOTATIONS[:2], annotation(20, image_id=2), annotation(12, segmentation=[[0, 0, 99, 0, 9, 9]]),
                   annotation(13, category_id=99), annotation(14, segmentation=[[3.1, 3.1, 3.1, 3.1, 3.1, 3.1]]),
                   annotation(15, segmentation=None), {"id": 16}, 5]
    (row,), (rejected,) = read(tmp_path, [bad, *REFS], annotations, images=[image(1), image(2)])
    assert (rejected.reason, rejected.annotation_id, rejected.source) == (reason, annotation_id, "refcoco")
    assert len(row["conversations"]) == 3 and len(row["regions"]) == 2


def test_a_photo_whose_annotations_are_all_bad_is_set_aside(tmp_path: Path) -> None:
    rows, rejected = read(tmp_path, [ref(1, 10, "one", "two")], [annotation(10, segmentation=[])])
    assert not rows and [each.reason for each in rejected] == ["polygon_invalid", "no_usable_annotation"]


@pytest.mark.parametrize(("images", "reason"), [
    ([image(1)], "unknown_image"), ([image(1), image(2, height=0)], "unknown_image"), ([image(1), image(2, height=13)], "size_mismatch"),
])
def test_a_bad_image_is_set_aside(tmp_path: Path, images: list[Any], reason: str) -> None:
    rows, (rejected,) = read(tmp_path, [*REFS, ref(4, 20, "x", image_id=2)], [*ANNOTATIONS, annotation(20, image_id=2)], images=images)
    assert len(rows) == 1 and (rejected.image_id, rejected.reason, rejected.annotation_id) == ("2", reason, None)


@pytest.mark.parametrize(("content", "reason"), [(None, "photo_missing"), (b"", "photo_format"), (b"not a photo", "photo_format")])
def test_a_bad_photo_is_set_aside(tmp_path: Path, content: bytes | None, reason: str) -> None:
    write_refer(tmp_path, [*REFS, ref(4, 20, "x", image_id=2)], [*ANNOTATIONS, annotation(20, image_id=2)], [image(1), image(2)])
    file = tmp_path / "images/mscoco/images/train2014/COCO_train2014_000000000002.jpg"
    file.unlink() if content is None else file.write_bytes(content)
    (row,), (rejected,) = build_all(RefcocoSource(input=str(tmp_path), split="train"))
    assert (row["image_id"], rejected.image_id, rejected.reason) == ("1", "2", reason)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_on_the_stored_pixels_turn_with_the_photo(tmp_path: Path, orientation: int) -> None:
    tagged = Image.fromarray(drawn(10).astype(np.uint8))
    tagged.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(tagged)) > 0
    expected = upright if orientation >= 5 else drawn(10)  # only a quarter turn shows in the sizes
    (row,), _ = read(tmp_path, orientation=orientation)
    assert (row["height"], row["width"]) == expected.shape
    np.testing.assert_array_equal(mask(row["regions"][0]), expected)


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        RefcocoSource(input=str(tmp_path), split="train", dataset="refcocog").plan()
    message = str(error.value)
    assert all(part in message for part in ("refcocog/refs(umd).p", "refs(umd).json", "instances.json", "images/train2014", "refcocog.zip"))
    (tmp_path / "refcocog").mkdir()
    (tmp_path / "refcocog/instances.json").write_text("{}")
    with pytest.raises(ConfigError) as error:
        RefcocoSource(input=str(tmp_path), split="train", dataset="refcocog", photos=str(tmp_path / "elsewhere")).plan()
    message = str(error.value)
    assert "refs(umd).p" in message and "elsewhere" in message and "instances.json" not in message


@pytest.mark.parametrize(("file", "content", "message"), [
    ("refs(unc).p", b"cos\nsystem\n(S'true'\ntR.", "wants to load os.system"),
    ("refs(unc).p", pickle.dumps({}), "holds a dict, expected the list"),
    ("refs(unc).json", b"{}", "not such an annotation file"),
    ("instances.json", b"{}", "not such an annotation file"),
    ("instances.json", json.dumps({"images": [], "annotations": [], "categories": [{"id": 1}]}).encode(), "name"),
])
def test_files_that_are_something_else_are_refused(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    write_refer(tmp_path, REFS, ANNOTATIONS, file="refs(unc).json" if file.endswith("json") else file)
    (tmp_path / "refcoco" / file).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        RefcocoSource(input=str(tmp_path), split="train").plan()


def test_the_same_seed_gives_the_same_rows_in_any_order_and_the_version_names_the_files(tmp_path: Path) -> None:
    refs = [ref(number, 100 + number, "a dog", "the cat", image_id=number) for number in range(1, 9)]
    annotations = [annotation(100 + number, number) for number in range(1, 9)]
    images = [image(number) for number in range(1, 9)]
    rows, _ = read(tmp_path / "a", refs, annotations, images=images)
    turned, _ = read(tmp_path / "b", refs[::-1], annotations[::-1], images=images[::-1])
    assert rows == turned[::-1]
    sources = [RefcocoSource(input=str(tmp_path / name), split="train", seed=seed) for name, seed in (("a", 0), ("a", 1), ("b", 0))]
    assert build_all(sources[0])[0] != build_all(sources[1])[0]
    versions = [source.plan().version for source in sources]
    assert versions[0].startswith("sha256:") and versions[0] == versions[1] != versions[2]


def test_the_plan_carries_only_what_the_split_needs(tmp_path: Path) -> None:
    write_refer(tmp_path, REFS, ANNOTATIONS, [image(1), image(2)])
    plan = RefcocoSource(input=str(tmp_path), split="train").plan()
    (record,) = plan.records.to_pylist()
    content = json.loads(record["payload"])
    assert [each["id"] for each in content["annotations"]] == [10, 11]
    assert content["annotations"][0]["segmentation"] == polygon(BOXES[10])
    assert (content["height"], content["width"]) == SIZE_HW
    assert record["num_bytes"] == len(record["payload"]) + Path(record["photo_uri"]).stat().st_size
    assert len(pickle.dumps(plan.builder)) < 1000
