"""A small folder in the layout of `refer`, with drawn photos, to be bent by the tests."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pixellm.data.schema import Region, region_rle
from pixellm.masks import rle_to_mask
from tests.data.rows import make_photo

SIZE_HW = (12, 16)
BOXES = {10: (2, 2, 7, 7), 11: (9, 1, 13, 10), 12: (0, 9, 7, 11)}  # x0, y0, x1, y1 of each annotation: pixels x0 to x1 - 1, y0 to y1 - 1
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def polygon(box: tuple[int, int, int, int]) -> list[list[float]]:
    x0, y0, x1, y1 = box
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(number: int, image_id: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0,
            "segmentation": polygon(BOXES.get(number, BOXES[10]))} | changes


def image(image_id: int = 1, **changes: Any) -> dict[str, Any]:
    name = f"COCO_train2014_{image_id:012d}.jpg"
    return {"id": image_id, "height": SIZE_HW[0], "width": SIZE_HW[1], "file_name": name, "license": 4,
            "coco_url": f"http://x/{image_id}"} | changes


def ref(ref_id: int, ann_id: Any, *sentences: str, image_id: int = 1, split: str = "train", **changes: Any) -> dict[str, Any]:
    """As `refs(unc).p` has it: the file name carries the annotation's id, so it names no photo."""
    return {
        "ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "category_id": 1,
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg", "sent_ids": [10 * ref_id + index for index in range(len(sentences))],
        "sentences": [{"sent_id": 10 * ref_id + index, "sent": text, "raw": text.upper(), "tokens": text.split()}
                      for index, text in enumerate(sentences)],
    } | changes


def write_refer(
    root: Path, refs: list[Any], annotations: list[Any], images: list[Any] | None = None, dataset: str = "refcoco",
    file: str = "refs(unc).p", photos: str = "images/mscoco/images/train2014", protocol: int = 2, **photo: Any,
) -> Path:
    """Writes all files and a photo for each image; returns `root`."""
    images = [image()] if images is None else images
    (root / dataset).mkdir(parents=True)
    (root / photos).mkdir(parents=True)
    (root / dataset / file).write_bytes(pickle.dumps(refs, protocol) if file.endswith(".p") else json.dumps(refs).encode())
    content = {"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES,
               "licenses": [{"id": 4, "name": "Attribution License", "url": "http://by"}]}
    (root / dataset / "instances.json").write_text(json.dumps(content))
    for each in images:
        (root / photos / each["file_name"]).write_bytes(make_photo(*SIZE_HW, **photo))
    return root


def drawn(*numbers: int) -> np.ndarray:
    """bool (H, W): the boxes of these annotations, drawn by Pillow."""
    canvas = Image.new("1", SIZE_HW[::-1])
    for number in numbers:
        x0, y0, x1, y1 = BOXES[number]
        ImageDraw.Draw(canvas).rectangle((x0, y0, x1 - 1, y1 - 1), fill=1)
    return np.asarray(canvas)


def mask(region: Region) -> np.ndarray:
    return rle_to_mask(region_rle(region))
