"""Label Studio's backend protocol; its run lengths against a decoder of ours and, where it is installed, against its own encoder."""

import base64

import numpy as np
import pytest

from serve.adapters.label_studio import Task, read_label_config, to_question
from serve.adapters.label_studio_rle import encode_brush
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
    ([{"data": {"image": "/data/upload/1.png"}}], {}, "image_base64"),
    ([{"data": {"image": "http://169.254.169.254/"}}], {}, "image_url"),
    ([{"data": {"image": DATA_URL}}] * 17, {}, "tasks_too_many"),
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
    assert len(wide) < 65_536 and read_label_config(wide).labels == ["half", "Left half", "pear"]
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
