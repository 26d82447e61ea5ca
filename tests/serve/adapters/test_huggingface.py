"""The image-segmentation task, asked by `huggingface_hub`."""

import base64

import numpy as np
import pytest
from huggingface_hub import InferenceClient, constants

from tests.serve.test_ingress import assert_problem, call, photo_bytes

PNG = photo_bytes()
PATH = "/adapters/huggingface"


@pytest.mark.parametrize("threshold, count", [(None, 1), (0.5, 1), (0.9, 0)])
def test_the_official_client(server, threshold, count, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # for the server on this machine
    client = InferenceClient(model=f"{server}{PATH}?question=Which%20half%3F", token="none")
    found = client.image_segmentation(PNG, threshold=threshold)
    assert len(found) == count
    for each in found:
        assert (each.label, each.score, each.mask.size) == ("the left half", 0.8765, (40, 20))
        assert (np.asarray(each.mask.convert("L")) == 255 * (np.arange(40) < 20)).all()


@pytest.mark.parametrize("request_body, status, code", [
    ({"content": PNG}, 422, "question_missing"),
    ({"content": b"", "params": {"question": "Which?"}}, 415, "photo_format"),
    ({"json": {"inputs": "?"}, "params": {"question": "Which?"}}, 422, "image_base64"),
    ({"json": {}, "params": {"question": "Which?"}}, 422, "inputs_missing"),
    ({"json": {"inputs": base64.b64encode(PNG).decode()}, "params": {"question": "refuse"}}, 422, "photo_unreadable"),
])
def test_bad_requests(request_body, status, code):
    assert_problem(call("POST", PATH, **request_body), status, code)
