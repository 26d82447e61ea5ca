"""The command `pixellm`, with the model that ships and with a server in this process."""

import functools
import json
import tomllib

import pytest
from PIL import Image

from jobs import command
from pixellm.masks import rle_area
from pixellm.testing import random_photo
from serve.client import Client
from serve.ingress import build_api
from tests.conftest import ROOT
from tests.serve.doubles import ApiTransport, RuleModel
from tests.serve.test_ingress import CONFIG


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    random_photo(40, 60).save(path)
    return str(path)


def test_a_server_answers(photo, tmp_path, monkeypatch, capsys):
    transport = ApiTransport(build_api(CONFIG, RuleModel()))
    monkeypatch.setattr(command, "Client", functools.partial(Client, transport=transport))
    out, answer = tmp_path / "a.png", tmp_path / "a.json"
    command.main(["segment", photo, "Which half?", "--model", "http://localhost", "--out", str(out), "--json", str(answer)])
    assert "answer It is the left half." in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
    (mask,) = json.loads(answer.read_text())["masks"]
    assert rle_area(mask["segmentation"]) == mask["area"] == 1200


def test_a_model_here_answers(photo, tmp_path, capsys):
    out = tmp_path / "a.png"
    command.main(["segment", photo, "where is the red ring?", "--out", str(out), "--max-new-tokens", "8"])
    assert "question where is the red ring?" in capsys.readouterr().out and out.exists()


@pytest.mark.parametrize("more, message", [
    (["nowhere.jpg", "What?"], "does not exist"), (["{photo}", " "], "is empty"), (["{photo}", "What?", "--device", "tpu"], "device"),
    (["{photo}", "What?", "--model", "no/such/model"], "no/such/model")])
def test_errors_are_one_line(photo, tmp_path, more, message):
    with pytest.raises(SystemExit, match=message):
        command.main(["segment", *(each.format(photo=photo) for each in more), "--out", str(tmp_path / "a.png")])


def test_the_command_is_installed_with_the_package():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"pixellm": "jobs.command:main"}
