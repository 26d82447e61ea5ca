"""A look at a run before nodes are spent on it: all problems at once, for clusters and GPUs that are not there."""

import json

import pytest

from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources.shapes import ShapesSource
from pixellm.model.presets import preset_config
from pixellm.storage import list_files, write_bytes
from pixellm.train import dry_run as module
from pixellm.train.dry_run import Assumed, dry_run
from tests.data.sources.build import build_all
from tests.train.examples import make_config

GPU_NODE = {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0, "object_store_memory": 100e9}}
GPU_RUN = {"use_gpu": True, "precision": "bf16", "num_workers": 32, "cpus_per_worker": 4, "lora": {}, "frozen": ["vision_tower"],
           "gradient_checkpointing": True, "photos_per_micro_step": 2, "stream_memory_mb": 2048}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("shards"))
    write_shards(build_all(ShapesSource(num_scenes=128, questions_per_scene=2))[0], uri, ShardOptions())
    return uri


@pytest.fixture
def cluster(monkeypatch):
    """The nodes that Ray would name; a test may change the list."""
    nodes = [GPU_NODE] * 4
    monkeypatch.setattr(module.ray, "nodes", lambda: nodes)
    return nodes


def write_architecture(folder, name: str) -> str:
    """A model directory as far as a dry run looks into it."""
    preset_config(name).save_pretrained(folder)
    for file in ("processor_config.json", "model.safetensors"):
        (folder / file).write_bytes(b"{}")
    return str(folder)


def test_a_run_on_a_cluster_that_fits(cluster, shards, s3_store, tmp_path):
    config = make_config(**GPU_RUN, data=[shards], storage=f"{s3_store.uri}/runs", model=write_architecture(tmp_path, "7b"), steps=500,
                         checkpoint_every_steps=100)
    found = dry_run(config, Assumed(gpu_memory_gb=80))
    assert found.problems == [] and found.report().endswith("nothing would stop it")
    assert "cluster: 4 nodes, 256 CPUs, 32 GPUs" in found.report() and "500 steps of 64 photos" in found.report()
    assert "250.00 epochs of 128 rows" in found.report() and "checkpoints every 100 steps, 5 in all of about 1.38 GB" in found.report()
    assert 14e9 < found.memory.total < 40e9 and found.memory.num_parameters == 7_157_247_106
    assert list_files(config.storage) == [], "the object that was written for the look is gone"


def test_everything_that_is_missing_is_told_at_once(cluster, tmp_path):
    cluster[1:] = [{"Alive": False, "Resources": GPU_NODE["Resources"]}]
    config = make_config(**GPU_RUN | {"stream_memory_mb": 4096}, model="13b", data=["nowhere", str(tmp_path)],
                         storage="/proc/nowhere/runs")
    found = dry_run(config, Assumed(gpu_memory_gb=20))
    expected = ["architecture without weights", "a worker needs", "nowhere has no manifest.json", f"{tmp_path} has no manifest.json",
                "cannot write /proc/nowhere/runs", "room for 8 workers of 4 CPU and 1 GPU, the run asks for 32", "need 128.25 CPUs",
                "batches that wait take 131.1 GB"]
    assert len(found.problems) == len(expected)
    for problem, text in zip(found.problems, expected, strict=True):
        assert text in problem


def test_a_bucket_that_refuses_these_keys(cluster, shards, s3_store, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    problems = dry_run(make_config(data=[shards], storage=f"{s3_store.uri}/runs"), Assumed(text_tokens=64)).problems
    assert len(problems) == 1 and f"{s3_store.uri}/runs" in problems[0].replace("s3://s3://", "s3://")


def test_parts_of_a_model_directory_are_missing(cluster, shards, tmp_path):
    write_bytes(tmp_path / "model" / "config.json", json.dumps(preset_config("tiny").to_dict()).encode())
    config = make_config(data=[shards], storage=str(tmp_path), model=str(tmp_path / "model"), lora={"targets": ["query"]})
    problems = dry_run(config, Assumed(text_tokens=64)).problems
    assert len(problems) == 3 and ".safetensors" in problems[0] and "processor_config.json" in problems[1]
    assert "lora.targets names 'query'" in problems[2]


def test_a_raw_deepspeed_key_that_is_not_known(cluster, shards, tmp_path):
    config = make_config(data=[shards], storage=str(tmp_path), model="tiny-random", deepspeed={"zero_optimization": {"overlap_com": True}})
    problems = dry_run(config, Assumed(text_tokens=64)).problems
    assert len(problems) == 1 and "DeepSpeed refuses" in problems[0] and "overlap_com" in problems[0]
