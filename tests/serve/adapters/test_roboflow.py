"""Roboflow's shape, read by `supervision` where it is installed (it brings matplotlib and a video codec), and by hand."""

import base64

import numpy as np
import pytest

from pixellm.masks import rle_to_mask
from tests.serve.test_ingress import assert_problem, call, photo_bytes

PNG = photo_bytes()
PATH = "/adapters/roboflow"
LEFT_HALF = np.broadcast_to(np.arange(40) < 20, (20, 40))


def infer(question: str = "Which half?", **request) -> dict:
    return call("POST", PATH, params={"question": question}, **(request or {"content": PNG})).json()


@pytest.mark.parametrize("request_body", [
    {"content": PNG, "headers": {"content-type": "image/png"}},
    {"content": base64.b64encode(PNG), "headers": {"content-type": "application/x-www-form-urlencoded"}}])
def test_the_shape(request_body):
    answer = infer(**request_body)
    assert answer["image"] == {"width": 40, "height": 20}
    (found,) = answer["predictions"]
    assert (rle_to_mask(found.pop("rle")) == LEFT_HALF).all()
    assert found == {"x": 10, "y": 10, "width": 20, "height": 20, "confidence": 0.8765, "class": "the left half", "class_id": 0,
                     "detection_id": "mask_0"}


def test_supervision_reads_it():
    supervision = pytest.importorskip("supervision", reason="supervision is not installed; it is not one of the project's dependencies")
    found = supervision.Detections.from_inference(infer())
    assert (found.mask[0] == LEFT_HALF).all() and found.xyxy.tolist() == [[0, 0, 20, 20]]
    assert found.data["class_name"].tolist() == ["the left half"] and found.confidence.tolist() == [0.8765]
    assert len(supervision.Detections.from_inference(infer("none"))) == 0


def test_bad_requests():
    assert_problem(call("POST", PATH, content=PNG), 422, "question_missing")
    assert_problem(call("POST", PATH, content=b"no", params={"question": "Which?"}), 415, "photo_format")
