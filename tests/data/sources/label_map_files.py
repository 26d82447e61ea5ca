"""An ADE20K folder on disk, to be bent by the tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixellm.data.schema import Row, region_rle
from pixellm.data.sources.ade20k import Ade20kSource
from pixellm.masks import rle_to_mask
from tests.data.rows import make_photo

NAMES = "Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t10\t2\twall\n2 \t0.10\t9\t1\tfloor, flooring \n150\t0.01\t3\t1\tflag\n"


def write_ade20k(root: Path, maps: Mapping[str, np.ndarray], **photo: Any) -> Ade20kSource:
    """Maps and photos by name; the photos are of 12 x 16 stored pixels."""
    images, annotations = root / "images/validation", root / "annotations/validation"
    for folder in (images, annotations):
        folder.mkdir(parents=True, exist_ok=True)
    for name, labels in maps.items():
        Image.fromarray(labels).save(annotations / f"{name}.png")
        (images / f"{name}.jpg").write_bytes(make_photo(**photo))
    (root / "objectInfo150.txt").write_text(NAMES)
    return Ade20kSource(input=str(root), split="val")


def random_labels(labels: list[int], height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(labels, dtype=np.uint8), (height, width))


def masks_of(row: Row, ignore: bool = False) -> dict[str, np.ndarray]:
    """By class; there is one region of each."""
    chosen = [region for region in row["regions"] if region["ignore"] is ignore]
    masks = {region["category"]: rle_to_mask(region_rle(region)) for region in chosen}
    assert len(masks) == len(chosen)
    return masks
