"""Label Studio's backend protocol; its run lengths against a decoder of ours and, where it is installed, against its own encoder."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from serve.adapters.label_studio import Task, read_label_config, to_label, to_question
from serve.adapters.label_studio_rle import encode_brush
from serve.fetch_config import LabelStudioConfig
from serve.problems import ApiError
from tests.serve.test_ingress import CONFIG, assert_problem, call, photo_bytes

DATA_URL = "data:image/png;base64," + base64.b64encode(photo_bytes()).decode()
XML = """<View><!-- what to paint --><Image name="photo" value="$image"/>
<BrushLabels name="brush" toName="photo"><Label value="half"/><Label value="Left half"/><Label value="pear"/></BrushLabels></View>"""


def masks():
    rng = np.random.default_rng(0)
    yield np.zeros((1, 1), bool)
    yield np.ones((1, 1), bool)
    yield np.zeros((300, 700), bool)  # 840,000 bytes: longer than the longest run
    yield np.arange(300 * 700).reshape(300, 700) % 65536 < 32768
    for power in range(1, 17):  # lengths around every size's limit
        yield np.arange(3 * 2**power).reshape(3, -1) >= 2**power + rng.integers(-1, 2)
    for _ in range(40):
        shape = rng.integers(1, 40, 2)
        yield rng.random(shape) < rng.random()
    for size in range(1, 17):  # every remainder of the bits
        yield np.arange(size)[None] % 2 == 0


def decode(rle: list[int], size_hw: tuple[int, int]) -> np.ndarray:
    """The format's own definition, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def read(num_bits: int) -> int:
        nonlocal place
        place += num_bits
        return int(bits[place - num_bits:place], 2)

    num, word_size, sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < num:
        is_run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word_size)] * length if is_run else [read(word_size) for _ in range(length)]
    pixels = np.array(values).reshape(*size_hw, 4)
    assert (pixels == pixels[..., :1]).all() and set(values) <= {0, 255}
    return pixels[..., 0] == 255


def test_the_format_gives_the_mask_back():
    for mask in masks():
        assert (decode(encode_brush(mask), mask.shape) == mask).all()


def test_the_bytes_are_those_of_label_studios_own_encoder():
    reason = "label-studio-sdk is not installed: it wants an older numpy than this project"
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason=reason)
    for mask in masks():
        assert encode_brush(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)


@pytest.mark.parametrize("mask, rle", [  # as label_studio_sdk 2.1.2 writes them; the last ends on a whole byte and has one more
    (np.eye(2, dtype=bool), [0, 0, 0, 16, 57, 27, 252, 127, 243, 128, 71, 254]),
    (np.arange(3)[None] % 2 == 1, [0, 0, 0, 12, 57, 27, 252, 96, 17, 255, 198, 0]),
    (np.ones((1, 65), dtype=bool), [0, 0, 1, 4, 57, 27, 255, 1, 3, 255, 0]),
])
def test_known_bytes(mask, rle):
    assert encode_brush(mask) == rle


def predict(tasks: list[dict], **more):
    return call("POST", "/adapters/label_studio/predict", json={"tasks": tasks, "label_config": XML, **more})


def test_predictions():
    response = predict([{"id": 1, "data": {"image": DATA_URL}}, {"id": 2, "data": {"image": DATA_URL, "question": "none"}}], project="3.1")
    first, second = response.json()["results"]
    (region,) = first["result"]
    assert (decode(region["value"].pop("rle"), (20, 40)) == (np.arange(40) < 20)).all()
    assert len(region.pop("id")) == 10
    assert region == {"from_name": "brush", "to_name": "photo", "type": "brushlabels", "original_width": 40, "original_height": 20,
                      "image_rotation": 0, "score": 0.8765, "value": {"format": "rle", "brushlabels": ["Left half"]}}
    assert (first["score"], first["model_version"]) == (0.8765, "test")
    assert second == {"result": [], "score": 0.0, "model_version": "test"}


def test_where_the_question_comes_from():
    task = Task(data={"question": "of the task"})
    written = {"result": [{"value": {"x": 1}}, {"value": {"text": ["of the", "region"]}}]}
    assert to_question(task, written, ["apple"]) == "of the region"
    assert to_question(task, {"result": [None]}, ["apple"]) == "of the task"
    assert to_question(Task(data={}), None, ["apple", "pear"]) == "Where is the apple, the pear?"


def test_the_rest_of_the_protocol():
    assert call("GET", "/adapters/label_studio/health").json() == {"status": "UP", "model_class": "PixelLM"}
    assert call("POST", "/adapters/label_studio/setup", json={"project": "1"}).json() == {"model_version": "test"}
    assert call("POST", "/adapters/label_studio/webhook", json={"action": "X"}).status_code == 201


@pytest.mark.parametrize("tasks, more, code", [
    ([{"data": {"other": DATA_URL}}], {}, "image_missing"),
    ([{"data": {"image": "/data/upload/1.png"}}], {}, "image_url"),
    ([{"data": {"image": "s3://bucket/1.png"}}], {}, "image_url"),
    ([{"data": {"image": "no base64!"}}], {}, "image_base64"),
    ([{"data": {"image": "http://169.254.169.254/"}}], {}, "image_url"),
    ([{"data": {"image": DATA_URL}}] * 101, {}, "tasks_too_many"),
    ([{"data": {"image": DATA_URL}}], {"label_config": "<View>"}, "label_config_invalid"),
    ([{"id": 1}], {}, "tasks_invalid"),
])
def test_bad_tasks(tasks, more, code):
    assert_problem(predict(tasks, **more), 422, code)


@pytest.mark.parametrize("xml", [
    "", "<View/>", XML.replace('toName="photo"', 'toName="other"'), XML.replace("$image", "image"),
    '<!DOCTYPE a [<!ENTITY b "c">]>' + XML])
def test_bad_label_configs(xml):
    with pytest.raises(ApiError) as error:
        read_label_config(xml)
    assert error.value.code == "label_config_invalid"


@pytest.mark.parametrize("context", [{"result": 5}, {"result": "x"}, {"result": {"value": 1}}])
def test_a_context_of_another_shape_is_told(context):
    assert_problem(predict([{"data": {"image": DATA_URL}}], params={"context": context}), 422, "params_invalid")


def test_a_project_of_many_brushes_and_photos_is_read_in_one_pass():
    """Every BrushLabels was held against every Image: 0.4 MB of them took a minute."""
    images = "".join(f'<Image name="i{number}"/>' for number in range(1000))
    brushes = "".join(f'<BrushLabels name="b{number}" toName="i{number}"/>' for number in range(700))
    wide = f"<View>{images}{brushes}{XML}</View>"
    assert len(wide) < 65_536 and list(read_label_config(wide).labels) == ["half", "Left half", "pear"]
    deep = "<View>" * 4500 + "</View>" * 4500
    assert_problem(predict([{"data": {"image": DATA_URL}}], label_config=deep), 422, "label_config_invalid")
    assert_problem(predict([{"data": {"image": DATA_URL}}], label_config="<View>" * 20_000), 422, "label_config_invalid")
    assert_problem(predict([{}] * 10_000), 422, "tasks_invalid")


def test_an_answer_larger_than_the_largest_body_is_refused():
    small = CONFIG.model_copy(update={"max_body_mb": 0.001})
    tasks = [{"data": {"image": DATA_URL}}] * 5
    response = call("POST", "/adapters/label_studio/predict", config=small, json={"tasks": tasks[:1], "label_config": XML})
    assert response.status_code == 200
    body = {"tasks": tasks, "label_config": XML}
    assert_problem(call("POST", "/adapters/label_studio/predict", config=small.model_copy(update={"max_body_mb": 0.0024}), json=body), 422,
                   "answer_too_large")


@pytest.mark.parametrize("phrase, label", [
    ("the left halves", "Left half"), ("the LEFT half", "Left half"), ("two pears", "pear"), ("a spear", None),
    ("the shaft of the pump", "Axle"), ("half", "half"), ("the pear on the shaft", "pear"), ("the shaft below the pear", "Axle"),
    ("红色汽车", "汽车"), ("boxes", "box"), ("many leaves", "leaf"), ("a boxer", None)])
def test_a_mask_gets_a_label_of_the_project_or_is_left_out(phrase, label):
    assert to_label(phrase, {"half": "half", "Left half": "Left half", "pear": "pear", "shaft": "Axle", "汽车": "汽车",
                             "box": "box", "leaf": "leaf"}) == label


def test_a_label_that_the_project_has_not_is_never_sent():
    foreign = XML.replace("half", "wing").replace("Left wing", "wheel")
    (prediction,) = predict([{"id": 1, "data": {"image": DATA_URL}}], label_config=foreign).json()["results"]
    assert prediction == {"result": [], "score": 0.0, "model_version": "test", "left_out": ["the left half"]}
    alias = XML.replace('value="half"', 'value="left half" alias="A"').replace("Left half", "other")
    (prediction,) = predict([{"id": 1, "data": {"image": DATA_URL}}], label_config=alias).json()["results"]
    assert prediction["result"][0]["value"]["brushlabels"] == ["A"], "what Label Studio stores is the alias"
    assert read_label_config(alias).asked == ["left half", "other", "pear"]


def test_a_batch_keeps_what_could_be_answered():
    tasks = [{"id": number, "data": {"image": DATA_URL if number % 10 else "no base64!", "question": "none"}} for number in range(100)]
    results = predict(tasks).json()["results"]
    assert len(results) == 100
    assert [number for number, each in enumerate(results) if "error" in each] == list(range(0, 100, 10))
    assert "not valid base64" in results[0]["error"]


class LabelStudio(BaseHTTPRequestHandler):
    """The addresses of a Label Studio server for photos, with its token."""

    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.headers["authorization"] != "Token secret":
            return self.answer(401)
        if self.path.startswith("/ls/tasks/7/presign/"):
            place = "/ls/data/upload/1/a.png" if "inside" in self.path else "/ls/api/users" if "back" in self.path else "http://169.254.169.254/"
            return self.answer(303, location=place)
        if self.path in ("/ls/data/upload/1/a.png", "/ls/data/local-files/?d=a.png"):
            return self.answer(200, photo_bytes())
        self.answer(404)

    def answer(self, status, body=b"", location=None):
        self.send_response(status)
        if location:
            self.send_header("location", location)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("image, code", [
    ("/data/upload/1/a.png", None), ("upload/1/a.png", None), ("/data/local-files/?d=a.png", None), ("URL/data/upload/1/a.png", None),
    ("s3://inside/a.png", None), ("gs://inside/a b.png", None), ("azure-blob://inside/a.png", None), ("s3://outside/a.png", "image_url"),
    ("/data/upload/none.png", "image_fetch"), ("http://169.254.169.254/data/upload/1/a.png", "image_url"),
    ("/data/../../upload/1/a.png", "image_url"), ("/data/../api/projects/1/export", "image_url"),
    ("URL/api/current-user/token", "image_url"),
    ("URL/../other/x", "image_url"), ("/data/%2e%2e/api/users", "image_url"), ("s3://back/a.png", "image_url")])
def test_photos_that_lie_in_label_studio(image, code, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "secret")
    LabelStudio.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), LabelStudio) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/ls"
        config = CONFIG.model_copy(update={"label_studio": LabelStudioConfig(url=url)})
        body = {"tasks": [{"id": 7, "data": {"image": image.replace("URL", url)}}], "label_config": XML}
        response = call("POST", "/adapters/label_studio/predict", config=config, json=body)
        server.shutdown()
    if code:
        assert_problem(response, 422, code)
        assert not any("169.254" in path or "/api/" in path or "other" in path for path in LabelStudio.asked)
    else:
        assert response.status_code == 200 and len(response.json()["results"][0]["result"]) == 1


def test_a_photo_in_label_studio_needs_a_configured_server_and_its_token(monkeypatch):
    problem = assert_problem(predict([{"id": 7, "data": {"image": "/data/upload/1/a.png"}}]), 422, "image_url")
    assert "label_studio" in problem.detail and "LABEL_STUDIO_API_KEY" in problem.detail
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    config = CONFIG.model_copy(update={"label_studio": LabelStudioConfig(url="http://127.0.0.1:9")})
    body = {"tasks": [{"id": 7, "data": {"image": "/data/upload/1/a.png"}}], "label_config": XML}
    problem = assert_problem(call("POST", "/adapters/label_studio/predict", config=config, json=body), 422, "image_fetch")
    assert "holds no token" in problem.detail
