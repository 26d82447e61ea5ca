"""The COCO-Stuff reader: its labels, and the folders that people have."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixellm.data.sources.coco_stuff import CocoStuffSource
from pixellm.errors import ConfigError
from tests.data.rows import make_photo
from tests.data.sources.build import build_all
from tests.data.sources.label_map_files import masks_of, random_labels

NAMES = "0: unlabeled\n1: person\n10: traffic light\n96: building-other\n171: wall-brick\n182: wood\n"
LABELS = random_labels([0, 9, 95, 170, 181, 255])


def write_files(maps: Path, photos: Path, names: Path) -> None:
    for folder in (maps, photos):
        folder.mkdir(parents=True)
    Image.fromarray(LABELS).save(maps / "000000000139.png")
    (photos / "000000000139.jpg").write_bytes(make_photo())
    names.write_text(NAMES)


def test_labels_are_numbers_less_one_and_names_with_a_hyphen_are_ignored(tmp_path: Path) -> None:
    write_files(tmp_path / "annotations/val2017", tmp_path / "images/val2017", tmp_path / "labels.txt")
    (row,), rejected = build_all(CocoStuffSource(input=str(tmp_path), split="val"))
    assert not rejected and (row["image_id"], row["source"], row["split"]) == ("000000000139", "coco_stuff", "val")
    masks = masks_of(row)
    assert list(masks) == ["person", "traffic light", "wood"]
    for name, label in (("person", 0), ("traffic light", 9), ("wood", 181)):
        np.testing.assert_array_equal(masks[name], label == LABELS)
    np.testing.assert_array_equal(masks_of(row, ignore=True)["unlabeled"], np.isin(LABELS, [95, 170, 255]))


def test_maps_beside_the_photos_of_coco_and_photos_elsewhere(tmp_path: Path) -> None:
    write_files(tmp_path / "coco/stuffthingmaps_trainval2017/val2017", tmp_path / "coco/val2017", tmp_path / "coco/labels.txt")
    write_files(tmp_path / "stuff/annotations/val2017", tmp_path / "other/val2017", tmp_path / "stuff/labels.txt")
    beside = build_all(CocoStuffSource(input=str(tmp_path / "coco"), split="val"))
    elsewhere = build_all(CocoStuffSource(input=str(tmp_path / "stuff"), split="val", photos=str(tmp_path / "other/val2017")))
    assert len(beside[0]) == 1 and beside == elsewhere


def test_files_that_are_missing_or_wrong(tmp_path: Path) -> None:
    source = CocoStuffSource(input=str(tmp_path), split="train", photos=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError) as caught:
        source.plan()
    for text in (f"photos (looked for {tmp_path}/nowhere)", "annotations/train2017, ", "labels.txt", "stuffthingmaps_trainval2017.zip"):
        assert text in str(caught.value)
    write_files(tmp_path / "annotations/train2017", tmp_path / "nowhere", tmp_path / "labels.txt")
    (tmp_path / "labels.txt").write_text("person\n")
    with pytest.raises(ConfigError, match=r"labels\.txt has no line like '1: person'"):
        source.plan()
