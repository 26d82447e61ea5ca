"""The HTTP face in this process, through the ASGI interface: real photos bytes, a rule instead of a model."""

import asyncio
import base64
import io
import json
import logging

import httpx
import pytest
from PIL import Image

from pixellm.masks import rle_to_mask
from serve.config import AppConfig
from serve.ingress import build_api
from serve.problems import ApiError
from serve.schemas import Problem, SegmentResponse
from tests.serve.doubles import RuleModel

CONFIG = AppConfig(model="models/test", max_body_mb=0.2, max_megapixels=0.1, max_question_chars=100, max_new_tokens=64, request_timeout_s=5)


def photo_bytes(image_format: str = "PNG", size: tuple[int, int] = (40, 20), mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 100).save(buffer, image_format, **options)
    return buffer.getvalue()


def as_json(data: bytes | str, question: str = "Which half?", **more) -> dict:
    image = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"json": {"image": image, "question": question, **more}}


def as_photo(data: bytes, question: str | list[str] = "Which half?", **more) -> dict:
    return {"content": data, "headers": {"content-type": "image/png"}, "params": {"question": question, **more}}


def as_form(data: bytes, question: str | None = "Which half?", **more) -> dict:
    return {"files": {"image": ("a.png", data)}, "data": {**({"question": question} if question is not None else {}), **more}}


def call(method: str, path: str, model=None, config: AppConfig = CONFIG, **request) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(build_api(config, model or RuleModel()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **request)

    return asyncio.run(run())


def ask(model=None, config: AppConfig = CONFIG, **request) -> httpx.Response:
    return call("POST", "/v1/segment", model, config, **request)


class Raising:
    """A model that raises instead of answering."""

    def __init__(self, error):
        self.error = error

    async def ask(self, ask):
        raise self.error
        yield


def assert_problem(response: httpx.Response, status: int, code: str) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(response.json())
    assert (problem.status, problem.code, problem.error.code, problem.error.message) == (status, code, code, problem.detail)
    assert problem.request_id == response.headers["x-request-id"]
    return problem


@pytest.mark.parametrize("request_body", [
    as_form(photo_bytes()),
    as_json(photo_bytes()),
    as_json("data:image/png;base64," + base64.b64encode(photo_bytes()).decode()),
    as_json(base64.encodebytes(photo_bytes()).decode()),  # with line breaks
    as_form(photo_bytes(), max_new_tokens="64"),
    as_json(photo_bytes(), max_new_tokens=64),
    as_photo(photo_bytes(), max_new_tokens=64, format="rle", stream="false"),
], ids=["form", "json", "data-url", "line-breaks", "form-limit", "json-limit", "photo"])
def test_all_forms_of_a_request_give_the_whole_answer(request_body):
    response = ask(**request_body)
    assert response.status_code == 200, response.text
    answer = SegmentResponse.model_validate(response.json())
    assert answer.size == (20, 40) and answer.finish_reason == "stop" and answer.model == "test"
    mask = answer.masks[0]
    assert answer.text[mask.span[0]:mask.span[1]] == mask.label == "the left half"
    assert rle_to_mask(response.json()["masks"][0]["segmentation"]).sum() == mask.area == 400
    assert mask.bbox == (0, 0, 20, 20) and mask.score == 0.8765 and mask.color.startswith("#")
    assert answer.answer.count("{seg}") == len(answer.masks)


def test_sizes_refer_to_the_upright_photo():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    response = ask(**as_form(photo_bytes("JPEG", exif=exif)))
    assert response.json()["size"] == [40, 20]
    assert response.json()["masks"][0]["segmentation"]["size"] == [40, 20]


@pytest.mark.parametrize("image_format, mode", [
    ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "RGBA"), ("PNG", "I;16"), ("PNG", "1"), ("WEBP", "RGBA")])
def test_color_modes_arrive_as_rgb(image_format, mode):
    model = RuleModel()
    assert ask(model, **as_form(photo_bytes(image_format, mode=mode))).status_code == 200
    assert model.asks[0].pixels.shape == (20, 40, 3) and model.asks[0].pixels.dtype == "uint8"


def test_the_answer_without_masks():
    answer = ask(**as_form(photo_bytes(), "none?")).json()
    assert answer["masks"] == [] and answer["text"] == "Nothing is there."


BIG = photo_bytes("PNG", (400, 400))
PNG = photo_bytes()


@pytest.mark.parametrize("request_body, status, code", [
    (as_form(b"hello, I am a text"), 415, "photo_format"),
    (as_form(photo_bytes("GIF")), 415, "photo_format"),
    (as_form(photo_bytes("JPEG", (200, 200))[:700]), 422, "photo_unreadable"),
    (as_form(b""), 415, "photo_format"),
    (as_form(BIG), 413, "photo_too_large"),
    (as_form(b"x" * 300_000), 413, "body_too_large"),
    (as_form(PNG, None), 422, "question_missing"),
    (as_form(PNG, "  \n"), 422, "question_missing"),
    (as_form(PNG, "x" * 101), 422, "question_too_long"),
    (as_form(PNG, max_new_tokens="many"), 422, "max_new_tokens_invalid"),
    (as_form(PNG, max_new_tokens="65"), 422, "max_new_tokens_invalid"),
    (as_form(PNG, max_new_token="6"), 422, "field_unknown"),
    ({"data": {"question": "Which?"}, "files": {"other": ("a", b"b")}}, 422, "field_unknown"),
    ({"data": {"image": "text"}, "files": {"question": ("a", b"b")}}, 422, "image_missing"),
    ({"content": b"garbage", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "bad_request"),
    ({"content": b"garbage", "headers": {"content-type": "multipart/form-data"}}, 400, "bad_request"),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "json_invalid"),
    ({"content": b"", "headers": {"content-type": "application/json"}}, 400, "json_invalid"),
    ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400, "json_invalid"),
    ({"content": b"[1]", "headers": {"content-type": "application/json"}}, 422, "body_invalid"),
    ({"json": {"question": "Which?"}}, 422, "image_missing"),
    ({"json": {"image": base64.b64encode(PNG).decode()}}, 422, "question_missing"),
    (as_json("not base64!"), 422, "image_base64"),
    (as_json("data:image/png,plain"), 422, "image_base64"),
    (as_json("\u00e9\u00e9\u00e9\u00e9"), 422, "image_base64"),
    (as_json(base64.b64encode(b"text").decode()), 415, "photo_format"),
    (as_json(PNG, question=5), 422, "question_invalid"),
    (as_json(PNG, max_new_tokens="5"), 422, "max_new_tokens_invalid"),
    (as_json(PNG, max_new_tokens=0), 422, "max_new_tokens_invalid"),
    (as_json(PNG, prompt="Which?"), 422, "field_unknown"),
    ({"content": PNG, "headers": {"content-type": "image/png"}}, 422, "question_missing"),
    (as_photo(PNG, format="jpeg"), 422, "format_invalid"),
    (as_photo(PNG, stream="perhaps"), 422, "stream_invalid"),
    (as_photo(PNG, answer="all"), 422, "field_unknown"),
    (as_photo(PNG, format=["png", "rle"]), 422, "format_invalid"),
    (as_photo(b"text"), 415, "photo_format"),
    (as_photo(PNG, question=["Which?"] * 17), 422, "question_too_many"),
    (as_json(PNG, question=[]), 422, "question_missing"),
    (as_json(PNG, question=["Which?", " "]), 422, "question_missing"),
    (as_json(PNG, format="svg"), 422, "format_invalid"),
    (as_json("https://example.com/a.png"), 422, "image_url"),
    ({**as_form(PNG), "params": {"format": "png"}}, 422, "field_unknown"),
    ({"content": PNG}, 415, "body_format"),
])
def test_a_bad_request_gets_its_problem(request_body, status, code):
    problem = assert_problem(ask(**request_body), status, code)
    assert problem.error.type == "invalid_request_error"


def test_a_body_is_cut_off_while_it_streams_in():
    sent = []

    async def endless():
        for _ in range(1000):
            sent.append(10_000)
            yield b"x" * 10_000

    assert_problem(ask(content=endless(), headers={"content-type": "application/json"}), 413, "body_too_large")
    assert sum(sent) < CONFIG.max_body_bytes + 3 * 10_000


def test_a_declared_length_is_refused_before_anything_is_read():
    async def never():
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-type": "application/json", "content-length": "999999999"}
    assert_problem(ask(content=never(), headers=headers), 413, "body_too_large")


def test_pixels_are_counted_before_decoding(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("the photo was decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("the photo was decoded"))
    assert_problem(ask(**as_form(BIG)), 413, "photo_too_large")


def test_no_problem_repeats_what_was_sent():
    for request in (as_json("secret!photo"), as_json(PNG, question=["secret"]), as_json(PNG, secret="secret"),
                    as_form(PNG, secret="secret")):
        assert "secret" not in ask(**request).text


@pytest.mark.parametrize("method, path, status, code", [
    ("GET", "/v1/segment", 405, "method_not_allowed"), ("POST", "/healthz", 405, "method_not_allowed"),
    ("GET", "/nowhere", 404, "not_found")])
def test_wrong_paths_and_methods_are_problems_too(method, path, status, code):
    response = call(method, path)
    assert_problem(response, status, code)
    assert ("allow" in response.headers) == (status == 405)


def test_a_slow_answer_is_given_up():
    config = CONFIG.model_copy(update={"request_timeout_s": 0.05})
    model = RuleModel()
    assert_problem(ask(model, config, **as_form(PNG, "wait")), 504, "answer_timeout")
    assert model.segmenter.left == ["wait"]
    assert_problem(ask(**as_form(PNG, "late")), 504, "answer_timeout")


def test_a_slow_body_is_given_up():
    async def slow():
        yield b"{"
        await asyncio.sleep(30)

    config = CONFIG.model_copy(update={"request_timeout_s": 0.05})
    assert_problem(ask(config=config, content=slow(), headers={"content-type": "application/json"}), 408, "request_timeout")


def test_an_unforeseen_exception_is_a_500_that_tells_nothing(caplog):
    with caplog.at_level(logging.DEBUG):
        response = ask(Raising(RuntimeError("cannot answer zanzibar")), **as_form(PNG, "zanzibar"))
    problem = assert_problem(response, 500, "internal_error")
    assert problem.error.type == "server_error"
    assert "zanzibar" not in response.text and "RuntimeError" not in response.text
    assert "RuntimeError" in caplog.text and problem.request_id in caplog.text
    assert "zanzibar" not in caplog.text


def test_errors_of_the_answer_keep_status_and_headers():
    response = ask(Raising(ApiError(503, "overloaded", "Try again.", headers={"retry-after": "3"})), **as_form(PNG))
    assert_problem(response, 503, "overloaded")
    assert response.headers["retry-after"] == "3"
    assert_problem(ask(**as_form(PNG, "refuse this")), 422, "photo_unreadable")
    assert_problem(ask(**as_form(PNG, "poison")), 500, "model_failed")


def test_request_ids_come_back_and_odd_ones_are_replaced():
    assert call("GET", "/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for odd in ("x" * 200, "a b", "a\tb", ""):
        assert call("GET", "/healthz", headers={"x-request-id": odd}).headers["x-request-id"] not in ("", odd)
    assert call("GET", "/healthz").headers["x-request-id"] != call("GET", "/healthz").headers["x-request-id"]


def test_the_default_limit_is_the_configured_one():
    model = RuleModel()
    ask(model, **as_form(PNG))
    ask(model, **as_json(PNG, max_new_tokens=3))
    assert [each.max_new_tokens for each in model.asks] == [64, 3]


def test_health_is_answered_while_photos_decode(monkeypatch):
    import threading

    release = threading.Event()
    monkeypatch.setattr("serve.limits.load_photo", lambda data, limits: release.wait(10) and Image.new("RGB", (4, 4)))

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_api(CONFIG, RuleModel())), base_url="http://localhost") as client:
            waiting = asyncio.create_task(client.post("/v1/segment", **as_form(PNG)))
            await asyncio.sleep(0.1)
            health = await client.get("/healthz")
            assert not waiting.done()
            release.set()
            return health, await waiting

    health, answer = asyncio.run(run())
    assert health.json() == {"status": "ok", "model": "test"}
    assert answer.status_code == 200


def test_the_documents_describe_all_forms_and_the_problems():
    assert call("GET", "/docs").status_code == 200
    document = call("GET", "/openapi.json").json()
    operation = document["paths"]["/v1/segment"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json", "image/*"}
    assert {"200", "400", "413", "415", "422", "500", "503", "504"} <= set(operation["responses"])
    assert "application/problem+json" in operation["responses"]["413"]["content"]
    schemas = document["components"]["schemas"]
    assert schemas["SegmentForm"]["properties"]["image"]["format"] == "binary"
    references = json.dumps(document).split('"$ref": "')[1:]
    names = {reference.split('"')[0].removeprefix("#/components/schemas/") for reference in references}
    assert names <= set(schemas)
