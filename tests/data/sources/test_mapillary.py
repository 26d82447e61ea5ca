"""The Mapillary Vistas reader: its configuration file and its folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixellm.data.sources.mapillary import MapillarySource
from pixellm.errors import ConfigError
from tests.data.rows import make_photo
from tests.data.sources.build import build_all
from tests.data.sources.label_map_files import masks_of, random_labels

LABELS = random_labels([0, 1, 2, 3])


def write_files(root: Path) -> MapillarySource:
    images, maps = root / "training/images", root / "training/v2.0/labels"
    for folder in (images, maps):
        folder.mkdir(parents=True)
    indexed = Image.fromarray(LABELS, mode="P")
    indexed.putpalette([165, 42, 42, 0, 192, 0, 0, 0, 0, 0, 0, 0])
    indexed.save(maps / "a_-B1.png")
    (images / "a_-B1.jpg").write_bytes(make_photo())
    labels = [("animal--bird", "Bird", True), ("object--support--pole", "Pole", True), ("void--ground", "Ground", False),
              ("void--unlabeled", "Unlabeled", False)]
    (root / "config_v2.0.json").write_text(json.dumps({
        "version": "2.0", "mapping": "public", "folder_structure": "{split}/{content}/{image_id:s}.{extension}",
        "labels": [{"name": name, "readable": readable, "evaluate": evaluate, "instances": True, "color": [0, 0, 0]}
                   for name, readable, evaluate in labels]}))
    return MapillarySource(input=str(root), split="train")


def test_labels_that_are_not_evaluated_are_ignored(tmp_path: Path) -> None:
    (row,), rejected = build_all(write_files(tmp_path))
    assert not rejected and (row["image_id"], row["source"], row["split"]) == ("a_-B1", "mapillary", "train")
    masks = masks_of(row)
    assert list(masks) == ["bird", "pole"]
    np.testing.assert_array_equal(masks["bird"], LABELS == 0)
    np.testing.assert_array_equal(masks["pole"], LABELS == 1)
    np.testing.assert_array_equal(masks_of(row, ignore=True)["unlabeled"], LABELS >= 2)


def test_files_that_are_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training/images.*training/v2\.0/labels.*config_v2\.0\.json.*version 2\.0"):
        MapillarySource(input=str(tmp_path), split="train").plan()
    source = write_files(tmp_path)
    (tmp_path / "config_v2.0.json").write_text('{"labels": [{"name": "animal--bird"}]}')
    with pytest.raises(ConfigError, match=r"config_v2\.0\.json .*readable"):
        source.plan()
