"""The Pascal-Part reader: its folders and its compressed masks; what it shares with PACO is tested in test_paco.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from pixellm.data.schema import region_rle
from pixellm.data.sources.pascal_part import PascalPartSource
from pixellm.errors import ConfigError
from pixellm.masks import mask_to_rle, rle_to_mask
from tests.data.rows import make_photo
from tests.data.sources.build import build_all


def test_parts_of_one_kind_are_one_target(tmp_path: Path) -> None:
    photos = tmp_path / "VOCdevkit/VOC2010/JPEGImages"
    photos.mkdir(parents=True)
    (photos / "2008_000002.jpg").write_bytes(make_photo())
    masks = np.zeros((3, 12, 16), dtype=bool)
    masks[0, 2:5, 3:9], masks[1, 6:12, 3:5], masks[2, 6:12, 7:9] = True, True, True
    (tmp_path / "val.json").write_text(json.dumps({
        "categories": [{"id": 31, "name": "cat:head"}, {"id": 32, "name": "cat:leg"}, {"id": 35, "name": "cat:paw", "abbr": "cat:pa"}],
        "annotations": [{"id": number, "segmentation": mask_to_rle(mask), "category_id": 31 + (number > 0),
                         "image_id": 2008000002, "iscrowd": 0} for number, mask in enumerate(masks)],
        "images": [{"id": 2008000002, "file_name": "2008_000002.jpg", "height": 12, "width": 16}]}))
    (row,), rejected = build_all(PascalPartSource(input=str(tmp_path), split="val"))
    assert not rejected and (row["image_id"], row["source"], row["split"]) == ("2008000002", "pascal_part", "val")
    assert [(each["category"], each["description"]) for each in row["regions"]] == [
        ("cat head", "head of the cat"), ("cat leg", "leg of the cat"), ("cat leg", "leg of the cat")]
    for region, mask in zip(row["regions"], masks, strict=True):
        np.testing.assert_array_equal(rle_to_mask(region_rle(region)), mask)
    assert {tuple(target) for each in row["conversations"] for target in each["targets"]} == {(0,), (1, 2)}


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"VOC2010/JPEGImages\).*train\.json\)\. It comes as VOCtrainval_03-May-2010\.tar"):
        PascalPartSource(input=str(tmp_path), split="train").plan()
