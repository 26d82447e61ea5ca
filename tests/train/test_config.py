"""The configuration of a run."""

import os

import pytest

from pixellm.errors import ConfigError
from pixellm.settings import build_config
from pixellm.train.config import TrainConfig

REQUIRED = {"run": "r", "storage": "runs", "data": ["shards"], "steps": 10}


def test_a_folder_is_an_entry_of_without_weight():
    config = build_config(TrainConfig, REQUIRED | {"data": ["a", {"uri": "b", "weight": 0.5}]})
    assert [(entry.uri, entry.weight) for entry in config.data] == [(os.path.abspath("a"), None), (os.path.abspath("b"), 0.5)]


def test_config_survives_its_own_dump():
    config = build_config(TrainConfig, REQUIRED | {"lora": {"r": 4}, "frozen": ["vision_tower"]})
    assert TrainConfig.model_validate(config.model_dump(mode="json")) == config


def test_parts_at_rate_zero_are_not_trained():
    config = build_config(TrainConfig, REQUIRED | {"learning_rates": {"vision_tower": 0}, "frozen": ["codebook"]})
    assert config.trained_parts == ("projector", "language_model", "mask_head")


@pytest.mark.parametrize(("changes", "message"), [
    ({"frozen": ["vision_tower", "projector", "language_model", "codebook", "mask_head"]}, "nothing would be trained"),
    ({"lora": {}, "frozen": ["language_model"]}, "drop one of the two"),
    ({"run": "../other"}, "run"),
    ({"min_workers": 3, "num_workers": 2}, "min_workers is 3, num_workers 2"),
    ({"failures": {"step_timeout_s": 60}}, "step_timeout_s is 60, storage_patience_s 600"),
    ({"data": []}, "data"),
    ({"data": [{"uri": "a", "wieght": 2}]}, "did you mean 'weight'"),
    ({"learning_rates": {"mask_haed": 1}}, "did you mean 'mask_head'"),
])
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_config(TrainConfig, REQUIRED | changes)


def test_local_storage_is_absolute_and_s3_stays():
    assert build_config(TrainConfig, REQUIRED).run_uri.startswith("/")
    assert build_config(TrainConfig, REQUIRED | {"storage": "s3://b/runs/"}).run_uri == "s3://b/runs/r"
