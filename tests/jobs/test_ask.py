"""The asking job against the HTTP face in this process."""

import functools

import pytest
from PIL import Image

from jobs import ask
from serve.client import Client
from tests.serve.doubles import ApiTransport, RuleModel
from tests.serve.test_ingress import CONFIG, build_api, photo_bytes


@pytest.fixture
def server(monkeypatch):
    """The client reaches an API in this process; yields the requests that it got."""
    transport = ApiTransport(build_api(CONFIG, RuleModel()))
    monkeypatch.setattr(ask, "Client", functools.partial(Client, transport=transport))
    return transport.requests


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo_bytes("JPEG"))
    return path


def test_it_prints_the_answer_and_writes_the_picture(server, photo, tmp_path, capsys):
    output = tmp_path / "new" / "answer.png"
    ask.main([f"image={photo}", "question=Which half?", f"output={output}", "url=http://localhost/"])
    printed = capsys.readouterr().out
    assert "answer It is the left half" in printed and "400 pixels" in printed and "1 masks" in printed
    with Image.open(output) as picture:
        assert picture.format == "PNG" and picture.width == 768
    assert str(server[0].url) == "http://localhost/v1/segment"


@pytest.mark.parametrize("more, message", [
    (["question=refuse this"], "answered 422: the photo is refused"),
    (["question=Which?", "max_new_tokens=1000"], "answered 422: max_new_tokens is 1000"),
])
def test_the_servers_own_words_are_shown(server, photo, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        ask.main([f"image={photo}", f"output={tmp_path / 'a.png'}", "url=http://localhost", *more])
    assert not (tmp_path / "a.png").exists()


def test_nobody_there(photo, monkeypatch):
    monkeypatch.setattr("serve.client.time.sleep", lambda seconds: None)
    with pytest.raises(SystemExit, match=r"no answer from http://127.0.0.1:1 .*jobs.deploy"):
        ask.main([f"image={photo}", "question=Which?", "url=http://127.0.0.1:1"])


@pytest.mark.parametrize("arguments", [[], ["image=a.jpg"], ["image=a.jpg", "shards=b", "question=c"], ["question=c"]])
def test_what_to_ask_must_be_clear(arguments, capsys):
    with pytest.raises(SystemExit):
        ask.main(arguments)
    assert "give image and question, or shards" in capsys.readouterr().err


def test_a_photo_that_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match="does not exist"):
        ask.main([f"image={tmp_path / 'none.jpg'}", "question=Which?"])
