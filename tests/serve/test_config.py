from pathlib import Path

import pytest
import torch

from pixellm.errors import ConfigError
from pixellm.inference.slots import SlotCache
from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.presets import preset_config
from pixellm.settings import build_config, load_yaml
from serve.config import AppConfig

CONFIGS = sorted((Path(__file__).parents[2] / "serve" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_and_stays_on_loopback(path):
    assert load_yaml(path, AppConfig).host == "127.0.0.1"


def test_there_is_a_configuration_for_each_preset():
    assert {"tiny", "7b", "13b"} <= {path.stem for path in CONFIGS}


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


@pytest.mark.parametrize("preset, gpu_gb, used_gb", [("7b", 40, 32.2), ("13b", 80, 62.8)])
def test_the_large_models_fit_their_gpu_with_a_photo_for_every_slot(preset, gpu_gb, used_gb):
    """The sums in the files' comments, from models on `meta`."""
    config = load_yaml(CONFIGS[0].parent / f"{preset}.yaml", AppConfig)
    architecture = preset_config(preset)
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(architecture).to(getattr(torch, config.dtype))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    slots = SlotCache(model.language_model.base_model, 10_000, config.engine.slot_tokens, config.engine.kv_cache_mb * 1e6)
    assert slots.num_slots == config.engine.num_slots  # the memory holds as many as are asked for, and no more
    keys = slots.keys.nbytes + slots.values.nbytes
    photo = architecture.num_image_tokens * slots.bytes_per_row
    assert config.engine.num_slots * 1.05 * photo < config.engine.photo_cache_mb * 1e6
    total = weights + keys + config.engine.photo_cache_mb * 1e6
    assert abs(total / 1e9 - used_gb) < 0.1 and total < 0.85 * gpu_gb * 1e9
    assert config.num_gpus == 1 and config.dtype == "bfloat16"
    assert architecture.num_image_tokens + config.max_new_tokens < config.engine.slot_tokens
    assert config.engine.slot_tokens <= architecture.text_config.max_position_embeddings
