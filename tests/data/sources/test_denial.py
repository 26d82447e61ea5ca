"""A row says that a thing is absent, or that every instance is marked, only where the annotation file proves it."""

from pathlib import Path
from typing import Any

import pytest

from pixellm.data.schema import Row
from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.coco_files import CocoCategory
from pixellm.data.sources.lvis import LvisSource
from pixellm.data.sources.referring import Category
from pixellm.data.sources.vocabulary import build_vocabulary, to_terms
from tests.data.sources.build import build_all
from tests.data.sources.instances_files import SQUARE, annotation, image, write_dataset

OTHER = [[10, 2, 14, 2, 14, 8, 10, 8]]
ASK_MUCH = {"questions_per_photo": 40, "absent_share": 0.5, "multi_category_share": 0}


def categories(*names: str | tuple[str, Any]) -> list[dict[str, Any]]:
    """Ids from 1; a pair has its supercategory."""
    pairs = [each if isinstance(each, tuple) else (each, None) for each in names]
    return [{"id": number, "name": name, "supercategory": above} for number, (name, above) in enumerate(pairs, start=1)]


def read(folder: Path, images: list[Any], annotations: list[Any], names: list[Any], kind: type = CocoSource) -> dict[str, Row]:
    rows, _ = build_all(kind(**write_dataset(folder, images, annotations, names), **ASK_MUCH))
    return {row["image_id"]: row for row in rows}


def denied(row: Row) -> list[str]:
    """The questions of a row whose answer is that nothing is there."""
    return [each["question"] or "" for each in row["conversations"] if not each["targets"]]


def seen_elsewhere(*category_ids: int) -> list[dict[str, Any]]:
    """Annotations of a second photo, so that the file has each category somewhere."""
    return [annotation(100 + number, 2, category_id=number) for number in category_ids]


@pytest.mark.parametrize(("first", "second"), [
    ("cup", "cup"), ("Cup", "cup"), ("traffic light", "traffic_light"), ("traffic-light ", "traffic  light")])
def test_two_ids_of_one_name_are_one_category(tmp_path: Path, first: str, second: str) -> None:
    rows = read(tmp_path, [image(1), image(2)], [annotation(1, category_id=1), annotation(2, category_id=2, segmentation=OTHER),
                                                 *seen_elsewhere(1, 2)], categories(first, second, "dog"))
    (asked,) = rows["1"]["conversations"]
    assert sorted(index for target in asked["targets"] for index in target) == [0, 1], "both ids in one question"
    assert {region["category"] for region in rows["1"]["regions"]} == {first}


@pytest.mark.parametrize(("marked", "wanted_absent", "names"), [
    ("trout", "fishes", categories(("fishes", "none"), ("trout", "fishes"))),
    ("fishes", "trout", categories(("fishes", "none"), ("trout", "fishes"))),
    ("trout", "Fish", categories("Fish", ("trout", "fishes"))),
    ("car", "objects", categories("objects", ("vehicle", "objects"), ("car", "vehicle"))),
    ("dining table", "table", categories("table", "dining table")),
    ("wine glasses", "glass", categories("glass", "wine glasses")),
    ("a", "b", categories(("a", "b"), ("b", "a"))),
])
def test_what_may_be_the_thing_that_is_marked_is_not_denied(tmp_path: Path, marked: str, wanted_absent: str, names: list[Any]) -> None:
    names = [*names, {"id": 90, "name": "lamp"}]
    number = {each["name"]: each["id"] for each in names}
    rows = read(tmp_path, [image(1), image(2)], [annotation(1, category_id=number[marked]), *seen_elsewhere(*number.values())], names)
    assert denied(rows["1"]) and not any(wanted_absent in question for question in denied(rows["1"])), "only the lamp is absent for sure"


def test_what_is_marked_nowhere_in_the_file_is_not_denied(tmp_path: Path) -> None:
    rows = read(tmp_path, [image(1), image(2)], [annotation(1), *seen_elsewhere(1, 2)], categories("cat", "dog", "giraffe"))
    assert denied(rows["1"]) and all("dog" in question for question in denied(rows["1"]))


@pytest.mark.parametrize("wrong", [
    {"segmentation": []}, {"segmentation": [[2, 2, 90, 2, 8, 8]]}, {"category_id": 77}, {"iscrowd": "maybe"}])
def test_a_photo_of_which_something_was_set_aside_denies_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    rows = read(tmp_path, [image(1), image(2)], [annotation(1), annotation(2, segmentation=OTHER) | wrong, *seen_elsewhere(1, 2, 3)],
                categories("cat", "dog", "giraffe"))
    assert not any(map(denied, (rows[each] for each in rows if each == "1")))


@pytest.mark.parametrize("unplaced", [{"image_id": 99}, {"image_id": None}, {"image_id": "1.jpg"}])
def test_an_annotation_without_a_photo_may_belong_to_any(tmp_path: Path, unplaced: dict[str, Any]) -> None:
    source = CocoSource(**write_dataset(tmp_path, [image(1), image(2)], [annotation(1), *seen_elsewhere(2), annotation(3) | unplaced]),
                        **ASK_MUCH)
    rows, _ = build_all(source)
    assert len(rows) == 2 and not any(map(denied, rows))
    assert "may belong to any" in source.plan().notes[0]


def test_images_of_one_file_are_joined_and_the_second_is_told(tmp_path: Path) -> None:
    images = [image(1), image(5, file_name="1.jpg", coco_url=None), image(2)]
    marked = [annotation(1), annotation(2, 5), annotation(3, 5, category_id=2, segmentation=OTHER), *seen_elsewhere(1, 2, 7)]
    source = CocoSource(**write_dataset(tmp_path, images, marked), **ASK_MUCH)
    rows, rejected = build_all(source)
    (row,) = (row for row in rows if row["image_id"] == "1")
    assert [region["category"] for region in row["regions"]] == ["cat", "dog"]
    assert denied(row) and all("giraffe" in question for question in denied(row)), "of both images"
    assert [(each.image_id, each.reason) for each in rejected] == [("5", "duplicate_photo")]


@pytest.mark.parametrize(("given", "is_crowd"), [
    (0, 0), ("0", 0), (None, 0), (False, 0), ("false", 0), (0.0, 0), (1, 1), ("1", 1), (True, 1)])
def test_a_crowd_may_be_said_as_text(tmp_path: Path, given: Any, is_crowd: int) -> None:
    rows = read(tmp_path, [image(1), image(2)], [annotation(1, iscrowd=given), annotation(2, category_id=2, segmentation=OTHER),
                                                 *seen_elsewhere(1)], categories("cat", "dog"))
    assert rows["1"]["regions"][0]["ignore"] is bool(is_crowd)


@pytest.mark.parametrize("category_id", ["1", 1.0, "1.0"])
def test_ids_as_text_or_with_a_point_are_the_number(tmp_path: Path, category_id: Any) -> None:
    rows = read(tmp_path, [image(1, height="12", width=16.0), image(2)], [annotation(1, category_id=category_id, image_id="1"),
                                                                          *seen_elsewhere(1)], categories("cat"))
    assert [region["category"] for region in rows["1"]["regions"]] == ["cat"]


def test_a_federated_set_denies_what_it_lists_but_nothing_related(tmp_path: Path) -> None:
    names = [{"id": 1, "name": "trout", "synonyms": ["trout"], "supercategory": "fish"}, {"id": 2, "name": "fish", "synonyms": ["fish"]},
             {"id": 3, "name": "lamp", "synonyms": ["lamp"]}, {"id": 4, "name": "chair", "synonyms": ["chair"]}]
    rows = read(tmp_path, [image(1, neg_category_ids=[2, 3], not_exhaustive_category_ids=[])], [annotation(1)], names, LvisSource)
    assert denied(rows["1"]) and all("lamp" in question for question in denied(rows["1"]))


def test_names_as_terms() -> None:
    assert ("wine", "glass") in to_terms("Wine_glasses (empty)")
    plurals = {"bus": "buses", "tomato": "tomatoes", "cookie": "cookies", "knife": "knives", "axe": "axes", "berry": "berries",
               "person": "people", "man": "men", "policeman": "policemen", "mouse": "mice", "glass": "glasses", "dog": "Dogs"}
    for one, many in plurals.items():
        assert to_terms(one) & to_terms(many), (one, many)
    assert not to_terms("bus") & to_terms("bush") and not to_terms("cat") & to_terms("car")
    entries = [CocoCategory(1, "cat"), CocoCategory(2, "dog", supercategory="")]
    vocabulary = build_vocabulary(entries, {each.id: Category(each.name, (each.name,)) for each in entries})
    assert all(vocabulary.related[each] == {each} for each in vocabulary.by_id.values()) and SQUARE


@pytest.mark.parametrize("upper", ["fish", "fishes"])
def test_every_fish_is_not_asked_for_beside_a_trout(tmp_path: Path, upper: str) -> None:
    names = [*categories(upper, ("trout", "fish")), {"id": 3, "name": "cup"}]
    cup = annotation(3, category_id=3, segmentation=[[3, 9, 6, 9, 6, 11, 3, 11]])
    for trout in ({}, {"segmentation": []}, {"iscrowd": 1}):
        marked = [annotation(1, category_id=1), annotation(2, category_id=2, segmentation=OTHER) | trout, cup, *seen_elsewhere(1, 2, 3)]
        row = read(tmp_path, [image(1), image(2)], marked, names)["1"]
        asked = " ".join(each["question"] or "" for each in row["conversations"])
        assert "cup" in asked and upper not in asked and "trout" not in asked


def test_a_photo_with_another_image_of_its_file_that_cannot_be_joined_is_asked_nothing(tmp_path: Path) -> None:
    images = [image(1), image(5, file_name="1.jpg", coco_url=None, height=24, width=32), image(2)]
    marked = [annotation(1), annotation(2, 5, category_id=2), *seen_elsewhere(1, 2)]
    source = CocoSource(**write_dataset(tmp_path, images, marked), **ASK_MUCH)
    rows, rejected = build_all(source)
    assert [row["image_id"] for row in rows] == ["2"]
    assert {(each.image_id, each.reason) for each in rejected} == {("5", "duplicate_photo"), ("1", "nothing_to_ask")}
