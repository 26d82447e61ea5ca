"""The Python client, against an API in this process and against servers that fail."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from pixellm.errors import InputError, ServerError
from pixellm.photos import load_photo, upright_rgb
from pixellm.testing import random_photo
from serve import client as client_module
from serve.client import Client
from serve.ingress import build_api
from serve.schemas import SegmentPart
from tests.serve.doubles import ApiTransport, RuleModel
from tests.serve.test_ingress import CONFIG, photo_bytes

PNG = photo_bytes()


@pytest.fixture
def waits(monkeypatch):
    """The seconds that the client would have slept."""
    slept = []
    monkeypatch.setattr(client_module.time, "sleep", slept.append)
    return slept


def build_client(model=None) -> Client:
    return Client("http://localhost/", transport=ApiTransport(build_api(CONFIG, model or RuleModel())))


def flaky(*answers):
    """A client whose requests get `answers` in turn: a status with headers, or an exception."""
    waiting = list(answers)

    def respond(request):
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer == 200:
            return ApiTransport(build_api(CONFIG, RuleModel())).handle_request(request)
        status, headers = answer
        return httpx.Response(status, headers={"content-type": "text/plain"} | headers, text="Internal Server Error")

    return Client("http://localhost", transport=httpx.MockTransport(respond), max_retries=2), waiting


def test_every_kind_of_photo(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    with build_client() as client:
        for photo in (PNG, path, str(path), Image.new("RGB", (40, 20))):
            answer = client.segment(photo, "Which half?", 5)
            assert answer.text == "It is the left half." and answer.masks[0].rle["size"] == [20, 40]


@pytest.mark.parametrize("questions", [[], ["none"], ["Which half?", "none", "Which half?"]])
def test_several_questions(questions):
    answers = build_client().segment_all(PNG, questions)
    assert [len(answer.masks) for answer in answers] == [0 if question == "none" else 1 for question in questions]


def test_parts():
    parts = list(build_client().stream(PNG, ["Which half?"]))
    assert "".join(part.text or "" for part in parts) == parts[-1].answer.text
    assert [part.mask for part in parts if part.mask] == parts[-1].answer.masks


def turned(photo: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    photo.save(data, "JPEG", quality=95, exif=exif)
    return data.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_sent_as_the_file_that_it_came_from(orientation, tmp_path):
    """The server sees the same pixels of both, the right way up."""
    data = turned(random_photo(20, 40), orientation)
    picture = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(load_photo(client_module._to_bytes(picture))), np.asarray(load_photo(data)))
    size = (40, 20) if orientation > 4 else (20, 40)
    with build_client() as client:
        assert client.segment(picture, "Which half?").size == client.segment(data, "Which half?").size == size


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16"])
def test_pictures_of_every_mode_are_sent(mode):
    picture = Image.new("I;16", (40, 20), 40_000) if mode == "I;16" else Image.new("RGB", (40, 20), (200, 30, 30)).convert(
        "L" if mode in ("LA", "PA", "I") else "RGBA" if mode == "LAB" else mode)
    if mode in ("LA", "I"):
        picture = picture.convert(mode)
    elif mode == "PA":
        picture = picture.convert("LA").convert("PA")
    elif mode == "LAB":
        picture = Image.new("LAB", (40, 20), (128, 160, 140))
    assert picture.mode == mode
    sent = load_photo(client_module._to_bytes(picture))
    assert np.array_equal(np.asarray(sent), np.asarray(upright_rgb(picture)))
    assert build_client().segment(picture, "Which half?").size == (20, 40)


def test_a_picture_without_a_white_is_an_error_before_it_is_sent():
    with pytest.raises(InputError, match="white is not known"):
        build_client().segment(Image.new("F", (4, 4)), "Which half?")


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0b\x0c\x1c\x1d\x1eb", "a\r\nb\nc", "data: x\n\nevent: error"])
@pytest.mark.parametrize("chunk_bytes", [1, 7, 100_000])
def test_a_text_may_hold_any_letter(text, chunk_bytes):
    """As servers write JSON, and cut at any byte."""
    part = SegmentPart(question=0, text=text)
    json = part.model_dump_json()
    data = f"event: text\ndata: {json}\n\n: a comment\r\nevent: text\r\ndata:{json}\r\n\r\n".encode()
    chunks = [data[start:start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=iter(chunks)))
    parts = list(Client("http://localhost", transport=transport).stream(PNG, ["Which half?"]))
    assert [each.text for each in parts] == [text, text]


def test_what_is_no_answer_of_ours_is_named():
    client = Client("http://localhost", transport=httpx.MockTransport(lambda _: httpx.Response(200, text="<html>log in</html>")))
    with pytest.raises(ServerError, match=r"http://localhost sent something else .*; does the address"):
        client.segment(PNG, "Which half?")


def test_problems_are_errors_with_the_servers_words():
    with pytest.raises(ServerError, match="http://localhost answered 422: the photo is refused") as error:
        build_client().segment(PNG, "refuse")
    assert (error.value.status, error.value.code) == (422, "photo_unreadable")

    class Breaking(RuleModel):
        async def ask(self, ask):
            async for event in super().ask(ask):
                yield event
                raise RuntimeError

    with pytest.raises(ServerError) as error:
        list(build_client(Breaking()).stream(PNG, ["Which half?"]))
    assert (error.value.status, error.value.code) == (500, "internal_error")


@pytest.mark.parametrize("failure", [
    (503, {"retry-after": "7"}), (429, {}), (502, {}), (500, {}), (500, {"content-type": "text/html"}),
    httpx.ConnectError("no"), httpx.RemoteProtocolError("no")])
def test_what_may_go_well_is_tried_again(failure, waits):
    client, waiting = flaky(failure, failure, 200)
    assert client.segment(PNG, "Which half?").text == "It is the left half."
    assert waiting == [] and len(waits) == 2
    assert waits == [7, 7] if failure == (503, {"retry-after": "7"}) else 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1


@pytest.mark.parametrize("answers, status, tries", [
    ([(503, {})] * 3, 503, 3), ([(500, {"content-type": "application/problem+json"})], 500, 1), ([(500, {})] * 3, 500, 3),
    ([(404, {})], 404, 1), ([httpx.ConnectError("no")] * 3, 0, 3),
    ([httpx.ReadTimeout("late")], 0, 1)])
def test_it_gives_up(answers, status, tries, waits):
    client, waiting = flaky(*answers)
    with pytest.raises(ServerError) as error:
        client.segment(PNG, "Which half?")
    assert error.value.status == status and waiting == [] and len(waits) == tries - 1
