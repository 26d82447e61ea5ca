"""The Python client, against an API in this process and against servers that fail."""

import httpx
import pytest
from PIL import Image

from pixellm.errors import ServerError
from serve import client as client_module
from serve.client import Client
from serve.ingress import build_api
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
    return Client("http://test/", transport=ApiTransport(build_api(CONFIG, model or RuleModel())))


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
        return httpx.Response(status, headers=headers, text="<html>")

    return Client("http://test", transport=httpx.MockTransport(respond), max_retries=2), waiting


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


def test_problems_are_errors_with_the_servers_words():
    with pytest.raises(ServerError, match="http://test answered 422: the photo is refused") as error:
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
    (503, {"retry-after": "7"}), (429, {}), (502, {}), httpx.ConnectError("no"), httpx.RemoteProtocolError("no")])
def test_what_may_go_well_is_tried_again(failure, waits):
    client, waiting = flaky(failure, failure, 200)
    assert client.segment(PNG, "Which half?").text == "It is the left half."
    assert waiting == [] and len(waits) == 2
    assert waits == [7, 7] if isinstance(failure, tuple) and failure[1] else 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1


@pytest.mark.parametrize("answers, status, tries", [
    ([(503, {})] * 3, 503, 3), ([(500, {})], 500, 1), ([(404, {})], 404, 1), ([httpx.ConnectError("no")] * 3, 0, 3),
    ([httpx.ReadTimeout("late")], 0, 1)])
def test_it_gives_up(answers, status, tries, waits):
    client, waiting = flaky(*answers)
    with pytest.raises(ServerError) as error:
        client.segment(PNG, "Which half?")
    assert error.value.status == status and waiting == [] and len(waits) == tries - 1
