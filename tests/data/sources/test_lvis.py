"""The LVIS reader: names of photos in both versions, synonyms, and what a federated dataset lets one ask."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from pixellm.data.schema import RejectedRow, Row, validate_row
from pixellm.data.sources.coco_files import CocoCategory
from pixellm.data.sources.lvis import LvisSource
from tests.data.rows import make_photo
from tests.data.sources.build import build_all
from tests.data.sources.instances_files import annotation, image, write_dataset

CATEGORIES = [
    {"id": 1, "name": "bow_(weapon)", "synonyms": ["bow_(weapon)", "longbow"], "def": "a weapon for shooting arrows"},
    {"id": 2, "name": "bow_(decorative_ribbons)", "synonyms": ["bow_(decorative_ribbons)"], "def": "a ribbon"},
    {"id": 3, "name": "baby", "synonyms": ["baby", "boy", "person"], "def": "a human being"},
    {"id": 4, "name": "alarm_clock", "synonyms": ["alarm_clock"], "def": "a clock that wakes a sleeper"},
]


def read(folder: Path, image_changes: dict[str, Any], annotations: list[Any], **source: Any) -> list[Row | RejectedRow]:
    keys = write_dataset(folder, [image(**image_changes)], annotations, CATEGORIES)
    rows, rejected = build_all(LvisSource(**keys, questions_per_photo=12, **source))
    return [*rejected, *rows]


def questions(found: list[Row | RejectedRow]) -> str:
    (row,) = found
    assert not isinstance(row, RejectedRow)
    validate_row(row)
    return " ".join(f"{each['question']} {each['answer']}" for each in row["conversations"])


def test_names_are_readable_and_a_phrase_means_one_category(tmp_path: Path) -> None:
    source = LvisSource(**write_dataset(tmp_path, [image()], [], CATEGORIES))
    categories = source.build_categories(msgspec.convert(CATEGORIES, list[CocoCategory]))
    names = {key: (category.name, category.phrases) for key, category in categories.items()}
    assert names == {
        1: ("bow (weapon)", ("longbow",)), 2: ("bow (decorative ribbons)", ("bow (decorative ribbons)",)),
        3: ("person", ("person",)), 4: ("alarm clock", ("alarm clock",)),
    }


def test_only_verified_categories_are_said_to_be_absent(tmp_path: Path) -> None:
    text = questions(read(tmp_path, {"neg_category_ids": [4]}, [annotation(1)], absent_share=0.5))
    assert "alarm clock" in text and "longbow" in text
    assert "ribbons" not in text and "person" not in text


def test_categories_that_are_not_exhaustive_are_not_asked_for(tmp_path: Path) -> None:
    text = questions(read(tmp_path, {"not_exhaustive_category_ids": [1]}, [annotation(1), annotation(2, category_id=3)]))
    assert "person" in text and "longbow" not in text


def test_definitions_can_be_asked_for(tmp_path: Path) -> None:
    text = questions(read(tmp_path, {}, [annotation(1)], definition_share=1))
    assert "a weapon for shooting arrows" in text and "longbow {seg}" in text


def test_a_photo_that_nothing_can_be_asked_about_is_recorded(tmp_path: Path) -> None:
    (rejected,) = read(tmp_path, {"not_exhaustive_category_ids": [1]}, [annotation(1)])
    assert isinstance(rejected, RejectedRow) and rejected.reason == "nothing_to_ask"


@pytest.mark.parametrize("names", [
    {"file_name": "COCO_val2014_000000000001.jpg"},
    {"file_name": None, "coco_url": "http://images.cocodataset.org/val2017/000000000001.jpg"},
    {"file_name": "000000000001.jpg", "coco_url": None},
    {"file_name": "../../somewhere/000000000001.jpg", "coco_url": None},
])
def test_photos_are_found_by_the_names_of_every_version(tmp_path: Path, names: dict[str, Any]) -> None:
    keys = write_dataset(tmp_path, [image(**names)], [annotation(1)], CATEGORIES)
    (tmp_path / "images/1.jpg").rename(tmp_path / "images/000000000001.jpg")
    rows, rejected = build_all(LvisSource(**keys))
    assert len(rows) == 1 and not rejected


@pytest.mark.parametrize(("names", "outcome"), [
    ({"file_name": None, "coco_url": "http://x/val2017/1.jpg"}, "found"),
    ({"file_name": "1.jpg", "coco_url": None}, "photo_ambiguous"),
    ({"file_name": None, "coco_url": None}, "photo_missing"),
    ({"file_name": "2.jpg", "coco_url": None}, "photo_missing"),
])
def test_the_folder_decides_between_photos_of_one_name(tmp_path: Path, names: dict[str, Any], outcome: str) -> None:
    keys = write_dataset(tmp_path, [image(**names)], [annotation(1)], CATEGORIES)
    (tmp_path / "images/1.jpg").unlink()
    for number, folder in enumerate(("train2017", "val2017")):
        (tmp_path / "images" / folder).mkdir()
        (tmp_path / "images" / folder / "1.jpg").write_bytes(make_photo(seed=number))
    rows, rejected = build_all(LvisSource(**keys))
    (found,) = [*rows, *rejected]
    if outcome == "found":
        assert not isinstance(found, RejectedRow) and found["image"] == make_photo(seed=1)
    else:
        assert isinstance(found, RejectedRow) and found.reason == outcome


def test_real_lvis_photos(shared_dir: Path) -> None:
    folder = shared_dir / "data/lvis_permissive"
    rows, rejected = build_all(LvisSource(input=str(folder / "images"), annotations=str(folder / "lvis_v0.5_val.json")))
    assert [each.reason for each in rejected] == ["nothing_to_ask"]
    assert (len(rows), sum(len(row["regions"]) for row in rows)) == (14, 142)
    for row in rows:
        validate_row(row)
