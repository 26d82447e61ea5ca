"""A run on a real Ray with DeepSpeed: two workers, then the same run further by one, from S3 to S3."""

import json
from dataclasses import replace

import pytest

from jobs import train as job
from pixellm.data.mixture import DataPosition
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources.shapes import ShapesSource
from pixellm.storage import exists, join_uri, list_files, local_copy, read_bytes
from pixellm.train.checkpoint import POSITION, PROGRESS, checkpoint_name, find_latest_checkpoint, read_checkpoint
from tests.data.sources.build import build_all

pytestmark = pytest.mark.ray
NUM_SCENES = 10


@pytest.fixture(scope="module")
def store_uri(s3_server):
    """Set before Ray starts: its workers inherit the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield join_uri(s3_server.uri, "train")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("shards"))
    write_shards(build_all(ShapesSource(num_scenes=NUM_SCENES, questions_per_scene=2))[0], uri, ShardOptions())
    return uri


def run_job(shards, storage, **changes):
    values = {"run": "demo", "storage": storage, "data": f"[{shards}]", "model": "tiny-random", "photos_per_micro_step": 2, "zero_stage": 2,
              "cpus_per_worker": 1, "max_conversations_per_photo": 2, "warmup_steps": 1, "log_every_steps": 1, "max_failures": 0}
    job.main([f"{key}={value}" for key, value in (values | changes).items()])


@pytest.mark.timeout(600)
def test_a_run_continues_with_another_number_of_workers(store_uri, local_ray, shards, tmp_path, capfd):
    storage = join_uri(store_uri, "runs")
    run_job(shards, storage, steps=2, num_workers=2)
    first_uri = find_latest_checkpoint(join_uri(storage, "demo"))
    assert first_uri.endswith(checkpoint_name(2))
    first = read_checkpoint(first_uri, tmp_path / "first")
    assert {value.dtype.itemsize for value in first.state.parameters.values()} == {4} and first.progress.num_updates == 2
    assert (first.position.num_lanes, first.position.rows_per_batch, first.position.batches_per_lane) == (2, 2, 2)

    run_job(shards, storage, steps=4, num_workers=1, accumulation=2, zero_stage=1)
    second_uri = find_latest_checkpoint(join_uri(storage, "demo"))
    progress = json.loads(read_bytes(join_uri(second_uri, PROGRESS)))
    assert (progress["step"], progress["num_updates"], progress["num_workers"]) == (4, 4, 1)
    position = DataPosition.from_json(read_bytes(join_uri(second_uri, POSITION)).decode())
    assert position == replace(first.position, batches_per_lane=4)
    assert first.config.seed == 0 and exists(join_uri(storage, "demo", "base", "config.json"))
    assert len(list_files(join_uri(storage, "demo", "tensorboard"))) == 2

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(local_copy(join_uri(storage, "demo", "tensorboard")))).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4]

    capfd.readouterr()
    run_job(shards, storage, steps=4, num_workers=1, accumulation=2)
    assert "at step 4 of 4 already: nothing to train" in capfd.readouterr().out
