"""COCO results: a number for each photo where its name has one, and never one number for two photos."""

import numpy as np

from pixellm.inference.prediction_files import to_coco_results
from pixellm.masks import mask_to_rle


def record(photo, failure=None):
    rle = mask_to_rle(np.ones((2, 3), dtype=bool))
    answer = {"text": "the cat.", "spans": [[0, 7]], "masks": [rle], "scores": [0.5]}
    return {"image_id": photo, "failure": failure, **({} if failure else answer)}


def test_two_photos_never_share_a_number():
    photos = ["a/1.jpg", "b/01.jpg", "000000544519.jpg", "cat.jpg", "c/7.jpg"]
    results = to_coco_results([*map(record, photos), record("d/7.jpg", "photo_format")])
    assert [result["image_id"] for result in results] == ["a/1.jpg", "b/01.jpg", 544519, "cat.jpg", "c/7.jpg"]
    assert all((result["phrase"], result["bbox"]) == ("the cat", [0, 0, 3, 2]) for result in results)
