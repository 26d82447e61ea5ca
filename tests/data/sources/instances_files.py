"""A small COCO folder on disk, to be bent by the tests."""

import json
from pathlib import Path
from typing import Any

from tests.data.rows import make_photo

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]  # 36 pixels
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 7, "name": "giraffe"}]


def annotation(number: int, image_id: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": 1, "segmentation": SQUARE, "iscrowd": 0} | changes


def image(image_id: int = 1, **changes: Any) -> dict[str, Any]:
    name = f"{image_id}.jpg"
    return {"id": image_id, "height": 12, "width": 16, "file_name": name, "license": 4, "coco_url": f"http://x/{name}"} | changes


def write_dataset(
    folder: Path, images: list[Any], annotations: list[Any], categories: list[Any] = CATEGORIES, **photo: Any
) -> dict[str, str]:
    """Writes `images/ID.jpg` for every image and `instances_val2017.json`; returns the source's keys."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for each in images:
        if isinstance(each, dict):
            (folder / "images" / f"{each.get('id')}.jpg").write_bytes(make_photo(**photo))
    content = {"images": images, "annotations": annotations, "categories": categories,
               "licenses": [{"id": 4, "name": "Attribution License", "url": "http://by"}]}
    (folder / "instances_val2017.json").write_text(json.dumps(content))
    return {"input": str(folder / "images"), "annotations": str(folder / "instances_val2017.json")}
