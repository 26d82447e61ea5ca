"""Failures of every kind on a real Ray, with DeepSpeed: a run goes on by itself, and ends where an undisturbed one ends."""

import random
import time

import psutil
import pytest

from pixellm.storage import list_files, read_bytes
from tests.ray.training_runs import TrainingRun, compare, kill_tree, ray_processes, training_workers, write_scenes

pytestmark = pytest.mark.ray
UNDISTURBED = {"max_loss_difference": 0.0, "max_parameter_difference": 0.0, "max_moment_difference": 0.0}
NUM_KILLS, STEPS_OF_KILLED = 10, 50


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return str(tmp_path_factory.mktemp("runs"))


@pytest.mark.timeout(900)
def test_a_killed_worker_changes_nothing(local_ray, shards, storage, tmp_path):
    """The one that runs every time: one kill, one worker."""
    whole = TrainingRun("whole", shards, storage, 1, steps=4, checkpoint_every_steps=2)
    whole.finish()
    run = TrainingRun("killed", shards, storage, 1, steps=4, checkpoint_every_steps=2)
    run.wait_for(lambda: run.newest() >= 2, "a first checkpoint")
    victims = training_workers()
    kill_tree(victims[-1])
    run.finish()
    if run.resumed_after():  # the kill may come after the last step
        assert run.resumed_after()[0] >= 2
    assert len(victims) == 1 and compare(whole.uri, run.uri, tmp_path) == UNDISTURBED


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_ten_kills_at_random_steps_change_nothing(local_ray, shards, storage, tmp_path, record_result):
    settings = {"steps": STEPS_OF_KILLED, "checkpoint_every_steps": 3, "keep_last": 1}
    whole = TrainingRun("whole-of-two", shards, storage, 2, **settings)
    whole.finish()
    run, rng, killed_after, resume_s = TrainingRun("killed-often", shards, storage, 2, **settings), random.Random(3), [], []
    seen = 0
    for _ in range(NUM_KILLS):
        run.wait_for(lambda seen=seen: run.newest() > seen and len(training_workers()) == 2, "a further checkpoint")
        wanted = run.newest() + rng.randint(0, 2)
        run.wait_for(lambda wanted=wanted: run.step() >= wanted, f"step {wanted}")
        num_resumed, killed_at = len(run.resumed_after()), time.monotonic()
        kill_tree(rng.choice(training_workers()))
        seen, killed_after = run.newest(), [*killed_after, run.step()]
        run.wait_for(lambda num=num_resumed: len(run.resumed_after()) > num, "the next start")
        resume_s.append(round(time.monotonic() - killed_at, 1))
    run.finish()
    differences = compare(whole.uri, run.uri, tmp_path)
    record_result("failures_worker_kills", {
        "kills": NUM_KILLS, "steps": STEPS_OF_KILLED, "workers": 2, "zero_stage": 2, "killed_after_steps": killed_after,
        "resumed_after_steps": run.resumed_after(), "resume_s": resume_s, **differences,
        "note": "other work shared the machine, so seconds are no measure of speed; resume_s: from the kill to the checkpoint being read"})
    assert len(run.resumed_after()) >= NUM_KILLS and differences == UNDISTURBED


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_job_goes_on_without_its_controller_and_when_it_is_submitted_again(local_ray, shards, storage, tmp_path, record_result):
    settings = {"steps": 8, "checkpoint_every_steps": 2}
    whole = TrainingRun("whole-of-one", shards, storage, 1, **settings)
    whole.finish()
    run = TrainingRun("resubmitted", shards, storage, 1, **settings)
    run.wait_for(lambda: run.newest() >= 2, "a first checkpoint")
    kill_tree(ray_processes("TrainController")[-1])
    run.wait_for(lambda: len(run.resumed_after()) == 1 and run.newest() >= 4, "a checkpoint after the controller was killed")

    kill_tree(psutil.Process(run.process.pid))
    run.process.wait()
    deadline = time.monotonic() + 300
    while training_workers() and time.monotonic() < deadline:  # Ray ends what the dead job owned
        time.sleep(0.2)
    assert not training_workers()
    run.start()
    run.finish()
    differences = compare(whole.uri, run.uri, tmp_path)
    record_result("failures_job", {"killed": ["controller", "job"], "steps": 8, "workers": 1, "resumed_after_steps": run.resumed_after(),
                                   **differences})
    assert len(run.resumed_after()) == 2 and differences == UNDISTURBED


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hang_is_named_and_the_run_goes_on(local_ray, shards, storage, record_result):
    """A stopped process: it neither fails nor answers."""
    timeout_s = 60.0
    run = TrainingRun("hanging", shards, storage, 2, steps=40, checkpoint_every_steps=2,
                      failures=f"{{step_timeout_s: {timeout_s}, storage_patience_s: 30}}")
    run.wait_for(lambda: run.newest() >= 2 and len(training_workers()) == 2, "a first checkpoint")
    num_resumed, stopped_at = len(run.resumed_after()), time.monotonic()
    training_workers()[-1].suspend()
    run.wait_for(lambda: len(run.resumed_after()) > num_resumed, "the start after the hang")
    resume_s = round(time.monotonic() - stopped_at, 1)
    run.finish()
    reports = [read_bytes(uri).decode() for uri in list_files(f"{run.uri}/hangs")]
    record_result("failures_hang", {"step_timeout_s": timeout_s, "resume_s": resume_s, "report": reports[-1:], "steps": 40})
    assert any("does not answer" in report and "waits for the others at step" in report for report in reports), reports
