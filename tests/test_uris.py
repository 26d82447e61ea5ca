"""Places in a configuration: absolute once it is read, wrong ones refused with the key that holds them."""

import importlib
import pkgutil
from pathlib import Path

import pytest

import jobs
from pixellm.errors import ConfigError
from pixellm.inference.predict import PredictConfig
from pixellm.settings import StrictModel, build_config
from pixellm.train.config import TrainConfig
from pixellm.uris import ModelUri, Uri
from serve.config import AppConfig


class Places(StrictModel):
    place: Uri
    others: tuple[Uri, ...] = ()
    model: ModelUri = "tiny"


def test_local_places_become_absolute_and_urls_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = ["./a/../b", "s3://bucket/key", f"file://{tmp_path}/c"]
    found = build_config(Places, {"place": "shards/train", "others": others, "model": "models/x"})
    assert found.place == f"{tmp_path}/shards/train" and found.model == f"{tmp_path}/models/x"
    assert found.others == (f"{tmp_path}/b", "s3://bucket/key", f"{tmp_path}/c")


def test_the_home_folder_is_known(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert build_config(Places, {"place": "~/runs"}).place == "/home/someone/runs"


def test_reading_a_configuration_again_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["shards/train", {"uri": "s3://b/c"}]
    train = build_config(TrainConfig, {"run": "a", "storage": "runs", "data": data, "steps": 1, "model": "m"})
    monkeypatch.chdir("/")  # a worker's folder is another
    assert TrainConfig.model_validate(train.model_dump(mode="json")) == train
    assert train.run_uri == f"{tmp_path}/runs/a" and train.data[0].uri == f"{tmp_path}/shards/train" and train.model == f"{tmp_path}/m"


@pytest.mark.parametrize("name", ["tiny", "7b"])
def test_names_of_models_stay_names(name):
    assert build_config(Places, {"place": "x", "model": name}).model == name


@pytest.mark.parametrize("wrong", [
    "gs://bucket/key", "s3:/bucket/key", "S3://bucket/key", "s3:bucket/key", "s3://bucket//key", "https://example.com/x", ""])
@pytest.mark.parametrize("key", ["place", "model"])
def test_another_scheme_is_an_error_that_names_the_key(key, wrong):
    with pytest.raises(ConfigError, match=f"configuration: {key}: "):
        build_config(Places, {"place": "x", key: wrong})


def test_a_served_model_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = build_config(AppConfig, {"model": "models/mine"})
    assert config.model == f"{tmp_path}/models/mine" and config.model_name == "mine"


def test_photos_and_answers_of_a_prediction_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = build_config(PredictConfig, {"photos": "photos", "question": "?", "output": "answers"})
    assert (config.photos, config.output) == (f"{tmp_path}/photos", f"{tmp_path}/answers")


URI_WORDS = ("uri", "shard folder", "model directory", "folder of")
NOT_OPENED_HERE = {("MlflowSettings", "tracking_uri")}


def _configurations():
    for module in pkgutil.walk_packages([str(Path(jobs.__file__).parent)], "jobs."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, StrictModel):
                yield value


def test_no_field_that_names_a_place_is_plain_text():
    plain = {(model.__name__, name) for model in _configurations() for name, field in model.model_fields.items()
             if field.annotation in (str, str | None) and not field.metadata
             and any(word in (field.description or "").lower() for word in URI_WORDS)}
    assert plain <= NOT_OPENED_HERE, f"give {sorted(plain)} the type Uri or ModelUri of pixellm.uris"
