from pathlib import Path

import pytest

from pixellm.errors import ConfigError
from pixellm.settings import build_config, load_yaml
from serve.config import AppConfig

CONFIGS = sorted((Path(__file__).parents[2] / "serve" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_stays_on_loopback(path):
    assert load_yaml(path, AppConfig).host == "127.0.0.1"


def test_there_is_a_tiny_configuration():
    assert "tiny" in [path.stem for path in CONFIGS]


def test_a_round_trip_through_a_dict_keeps_everything():
    config = load_yaml(CONFIGS[0], AppConfig)
    assert build_config(AppConfig, config.model_dump()) == config


@pytest.mark.parametrize("values, message", [
    ({"max_body_bm": 4}, "did you mean 'max_body_mb'"),
    ({"engine": {"num_slot": 4}}, "did you mean 'num_slots'"),
    ({"autoscaling": {"min_replica": 2}}, "did you mean 'min_replicas'"),
    ({"engine": {"num_slots": 32}, "max_ongoing_requests": 16}, r"max_ongoing_requests \(16\) is below engine.num_slots \(32\)"),
    ({"autoscaling": {"min_replicas": 3, "max_replicas": 2}}, r"max_replicas \(2\) is below min_replicas \(3\)"),
    ({"device": "cuda"}, "num_gpus is 0"),
    ({"device": "tpu"}, "device"),
    ({"port": 70000}, "port"),
    ({"max_new_tokens": 0}, "max_new_tokens"),
    ({"segmenter": "pixellm.testing.FakeSegmenter"}, "unknown key"),
])
def test_wrong_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        build_config(AppConfig, {"model": "tiny", **values})
