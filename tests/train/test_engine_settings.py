"""What becomes DeepSpeed's configuration, and that a raw piece of it cannot contradict the run."""

import json

import pytest

from pixellm.errors import ConfigError
from pixellm.settings import build_config
from pixellm.train.config import TrainConfig
from tests.train.examples import make_config

REQUIRED = {"run": "r", "storage": "runs", "data": ["shards"], "steps": 10}


def test_raw_values_are_merged_in(tmp_path):
    raw = {"zero_optimization": {"reduce_bucket_size": 1000, "stage": 1}, "wall_clock_breakdown": True}
    file = tmp_path / "deepspeed.json"
    file.write_text(json.dumps(raw))
    for given in (raw, str(file)):
        config = build_config(TrainConfig, REQUIRED | {"zero_stage": 1, "deepspeed": given})
        values = config.to_deepspeed()
        assert values["zero_optimization"] == {"stage": 1, "overlap_comm": False, "reduce_bucket_size": 1000}
        assert values["wall_clock_breakdown"] is True and config.deepspeed == raw


@pytest.mark.parametrize(("changes", "message"), [
    ({"deepspeed": {"zero_optimization": {"stage": 3}}}, r"zero_optimization.stage = 3, but it is 2 by zero_stage; take it out"),
    ({"deepspeed": {"gradient_clipping": 0.5}}, r"gradient_clipping = 0.5, but it is 1.0 by clip_norm"),
    ({"deepspeed": {"optimizer": {"params": {"lr": 1e-3}}}}, r"optimizer.params.lr = 0.001, but it is 0.0 by .*learning_rates"),
    ({"deepspeed": {"fp16": {"enabled": True}}}, r"fp16 = .*, but it is decided by precision"),
    ({"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}}, r"but it is decided by offload"),
    ({"deepspeed": {"scheduler": {"type": "WarmupLR"}}}, r"decided by warmup_steps and decay"),
    ({"deepspeed": "nowhere.json"}, r"is not the path of a JSON file"),
    ({"offload": ["parameters"]}, r"needs zero_stage 3, found 2"),
    ({"offload": ["optimizer"], "zero_stage": 0}, r"needs zero_stage 1, 2 or 3, found 0"),
    ({"offload": ["weights"]}, r"offload.0"),
])
def test_contradictions_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_config(TrainConfig, REQUIRED | changes)


def test_a_gpu_run_is_the_same_but_for_its_device():
    cpu, gpu = (make_config(use_gpu=use_gpu, precision="bf16", offload=["optimizer"]).to_deepspeed() for use_gpu in (False, True))
    assert gpu["zero_optimization"]["overlap_comm"] and gpu["zero_optimization"]["offload_optimizer"]["pin_memory"]
    assert gpu["optimizer"]["params"].pop("fused") is True
    assert gpu["bf16"] == {"enabled": True} and gpu["data_types"] == {"grad_accum_dtype": "fp32"}
    assert {key for key in cpu if cpu[key] != gpu[key]} == {"zero_optimization"}
