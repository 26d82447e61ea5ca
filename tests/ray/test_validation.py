"""Validation beside training on a real Ray: results beside checkpoints, pictures, a failure that stops nothing, an early stop."""

import pytest
import ray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources.shapes import ShapesSource
from pixellm.storage import join_uri, read_bytes, write_bytes
from pixellm.train.checkpoint import PARAMETERS, checkpoint_name
from pixellm.train.history import History
from pixellm.train.retention import find_best_checkpoint, list_checkpoints, record_validation
from pixellm.train.validation import validating
from tests.data.sources.build import build_all
from tests.ray.test_train import run_job
from tests.train.test_export import make_run

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("held-out"))
    write_shards(build_all(ShapesSource(num_scenes=4, seed=3, split="val", questions_per_scene=2))[0], uri, ShardOptions())
    return uri


def validation(held_out, **changes):
    return {"shards": held_out, "cpus_per_worker": 0.5, "torch_threads": 1, "max_new_tokens": 8, "num_pictures": 2} | changes


@pytest.mark.timeout(600)
def test_each_checkpoint_is_validated_and_one_that_is_broken_only_told(local_ray, held_out, tmp_path, capsys, monkeypatch):
    cancelled = []
    monkeypatch.setattr(ray, "cancel", lambda task, force: cancelled.append(task))
    config, good, _ = make_run(tmp_path, validation=validation(held_out))
    assert record_validation(good, {}), "as a job leaves it that ended in the middle"
    broken = join_uri(config.run_uri, checkpoint_name(9))
    with validating(config):
        for name in ("manifest.json", "config.yaml", "progress.json"):
            write_bytes(join_uri(broken, name), read_bytes(join_uri(good, name)))
        write_bytes(join_uri(broken, PARAMETERS), b"not what the manifest says")
    by_step = {each.step: each.validation for each in list_checkpoints(config.run_uri)}
    assert not cancelled, "a task that has just failed must not be cancelled: now and then Ray ends the driver then"
    assert by_step[9] == {"failed": 1.0} and 0 <= by_step[7]["giou"] <= 1 and by_step[7]["failed_photos"] == 0
    assert find_best_checkpoint(config.run_uri).step == 7
    history = History.read(config.run_uri)
    assert history.num_failures == 1 and history.scores == [(7, by_step[7]["giou"])]
    out = capsys.readouterr().out
    assert "validation of step 9 failed" in out and "checksum" in out and "validation of step 7: gIoU" in out
    events = EventAccumulator(join_uri(config.run_uri, "tensorboard", "validation")).Reload()
    assert [event.value for event in events.Scalars("validation/giou")] == [pytest.approx(by_step[7]["giou"])]
    assert [event.step for event in events.Images("validation/example_1")] == [7]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_without_progress_stops_early(local_ray, held_out, tmp_path, capfd):
    storage = str(tmp_path)
    history = History.read(join_uri(storage, "demo"))
    history.add(-2, {"giou": 2.0})
    history.add(-1, {"giou": 0.0})
    changes = {"steps": 4, "num_workers": 1, "checkpoint_every_steps": 1,
               **{f"validation.{name}": value for name, value in validation(held_out, patience=1).items()}}
    run_job(held_out, storage, **changes)
    out = capfd.readouterr().out
    assert "validation of step 1: gIoU" in out
    (last,) = list_checkpoints(join_uri(storage, "demo"))
    assert last.step == 1 and last.score is not None, "the last checkpoint is validated after the training"
    run_job(held_out, storage, **changes)
    assert "run demo is at step 1 of 4 already: nothing to train" in capfd.readouterr().out
