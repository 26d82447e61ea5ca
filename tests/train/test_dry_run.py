"""A look at a run before nodes are spent on it: all problems at once, for clusters and GPUs that are not there."""

import json
import re

import pytest
import ray
import yaml
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources.shapes import ShapesSource
from pixellm.model.presets import preset_config
from pixellm.storage import list_files, write_bytes
from pixellm.train import capacity
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
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(capacity.ray_state.state, "get_cluster_config", lambda: None)
    monkeypatch.setattr(capacity, "LAUNCHER_FILE", "/nowhere/ray_bootstrap_config.yaml")
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
    assert "cluster (live): 4 nodes, 256 CPUs, 32 GPUs" in found.report() and "500 steps of 64 photos" in found.report()
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


HEAD = {"Alive": True, "Resources": {"CPU": 8.0, "object_store_memory": 4e9}}
GPU_KIND = {"CPU": 64, "GPU": 8, "memory": 400_000_000_000}


def seen_from(cluster, shards, tmp_path, **changes):
    """A look at the GPU run from a cluster whose only live node is its head."""
    cluster[:] = [HEAD]
    run = GPU_RUN | {"lora": None, "frozen": ["vision_tower", "language_model"]} | changes
    return dry_run(make_config(**run, data=[shards], storage=str(tmp_path / "runs"), model="tiny-random"), Assumed(text_tokens=64))


def test_what_the_platform_may_start_counts(cluster, shards, tmp_path, monkeypatch):
    def report(**groups):
        config = ClusterConfig(node_group_configs=[
            NodeGroupConfig(name=name, resources=GPU_KIND, max_count=count) for name, count in groups.items()])
        monkeypatch.setattr(capacity.ray_state.state, "get_cluster_config", lambda: config)

    report(gpu=4)
    found = seen_from(cluster, shards, tmp_path)
    assert found.problems == [] and "cluster (autoscaler's maximum, 1 of them live): 5 nodes, 264 CPUs, 32 GPUs" in found.report()
    report(gpu=2, other=1)
    assert "room for 24 workers" in seen_from(cluster, shards, tmp_path).report()
    report(gpu=-1)
    assert seen_from(cluster, shards, tmp_path).problems == [], "a group without a limit"
    report(gpu=0)
    assert "room for 0 workers" in seen_from(cluster, shards, tmp_path).report()


def test_what_the_launchers_file_allows_counts(cluster, shards, tmp_path, monkeypatch):
    file = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(capacity, "LAUNCHER_FILE", str(file))
    kinds = {"head": {"resources": {"CPU": 8}}, "gpu": {"resources": GPU_KIND, "max_workers": 6}, "more": {"resources": GPU_KIND}}
    for max_workers, text in ((4, "5 nodes, 264 CPUs, 32 GPUs"), (10, "11 nodes, 648 CPUs, 80 GPUs"), (3, "room for 24 workers")):
        file.write_text(yaml.safe_dump({"max_workers": max_workers, "head_node_type": "head", "available_node_types": kinds}))
        found = seen_from(cluster, shards, tmp_path)
        assert text in found.report() and (found.problems == []) == ("GPUs" in text)
    cluster[:] = [HEAD, GPU_NODE]
    assert "4 nodes" in seen_from(cluster, shards, tmp_path).report(), "a live node is one of its group's maximum"


def test_assumed_nodes_give_settings_hours_and_cost(shards, tmp_path):
    nodes = [{"count": 2, "cpus": 64, "gpus": 8, "memory_gb": 1000, "gpu_memory_gb": 80, "price_per_hour": 50}]
    run = GPU_RUN | {"num_workers": 16, "photos_per_micro_step": 2, "accumulation": 4, "telemetry": {"peak_tflops": 989}}
    config = make_config(**run, data=[shards], storage=str(tmp_path / "runs"), model=write_architecture(tmp_path, "7b"), steps=5000)
    found = dry_run(config, Assumed.model_validate({"nodes": nodes}))
    assert found.problems == [] and "cluster (assumed): 2 nodes, 128 CPUs, 16 GPUs, 600.0 GB object store" in found.report()
    assert "recommended for GPUs of 80 GB: photos_per_micro_step=8 accumulation=1 zero_stage=1" in found.report()
    hours, price = re.search(r"about ([\d.]+) hours at 35% of 989 TFLOP/s a worker, ([\d,]+) at 100.00 an hour", found.report()).groups()
    assert 1 < float(hours) < 100 and int(price.replace(",", "")) == pytest.approx(100 * float(hours), abs=6)
    small = [nodes[0] | {"gpu_memory_gb": 12}]
    found = dry_run(config, Assumed.model_validate({"nodes": small}))
    assert "nothing fits GPUs of 12 GB" in found.report() or "zero_stage=3" in found.report()
    assert any("assume.gpu_memory_gb is 12" in problem for problem in found.problems)
