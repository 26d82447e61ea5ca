"""The engine's settings are reachable from all who answer questions, by the same keys."""

import pytest

from pixellm.errors import ConfigError
from pixellm.evaluation.evaluate import EvaluateConfig
from pixellm.inference import segmenter as module
from pixellm.inference.config import EngineConfig, InferenceConfig
from pixellm.inference.predict import PredictConfig
from pixellm.settings import build_config
from serve.config import AppConfig
from serve.replica import load_segmenter

CONFIGS = [(PredictConfig, {"photos": "in", "question": "what?", "output": "out"}), (EvaluateConfig, {"shards": "in", "output": "out"}),
           (AppConfig, {"model": "tiny"})]


@pytest.mark.parametrize(("kind", "values"), CONFIGS, ids=lambda each: getattr(each, "__name__", ""))
def test_all_who_answer_questions_reach_the_engine(kind, values, monkeypatch):
    monkeypatch.setattr(module.Segmenter, "from_pretrained", lambda *args: args)
    engine = {"num_slots": 3, "photo_cache_mb": 50, "kv_cache_mb": 900}
    config = build_config(kind, values | {"engine": engine, "dtype": "bfloat16", "int8_weights": True})
    for load in (module.load_segmenter, load_segmenter):
        assert load(config) == ("tiny", "bfloat16", "cpu", EngineConfig(**engine), True)
    with pytest.raises(ConfigError, match=r"engine\.num_slot: unknown key; did you mean 'num_slots'"):
        build_config(kind, values | {"engine": {"num_slot": 3}})


def test_what_is_loaded_is_what_the_configuration_says():
    segmenter = module.load_segmenter(InferenceConfig(engine=EngineConfig(num_slots=2), torch_threads=1))
    assert segmenter._engine._loop.stepper.config.num_slots == 2
