"""The store that a run writes to is away for a minute: training goes on, and nothing starts again."""

import time

import pytest

from tests.ray.training_runs import TrainingRun, compare, write_scenes

pytestmark = [pytest.mark.ray, pytest.mark.slow]
OUTAGE_S = 60.0
SETTINGS = {"steps": 20, "checkpoint_every_steps": 2}


@pytest.mark.timeout(3600)
def test_a_store_that_is_away_for_a_minute(s3_outages, request, tmp_path, record_result):
    """The environment of the store is set before Ray starts: its workers inherit it."""
    request.getfixturevalue("local_ray")
    shards = write_scenes(tmp_path / "shards")
    run = TrainingRun("outage", shards, f"{s3_outages.store.uri}/runs", 1, **SETTINGS)
    run.wait_for(lambda: run.newest() >= 2, "a first checkpoint")
    s3_outages.kill()
    began = time.monotonic()
    while time.monotonic() < began + OUTAGE_S or "trying again" not in run.output():
        assert run.process.poll() is None and time.monotonic() < began + 600, run.output()[-4000:]
        time.sleep(0.5)
    away_s = round(time.monotonic() - began, 1)
    s3_outages.start()
    run.finish()

    whole = TrainingRun("whole", shards, str(tmp_path / "runs"), 1, **SETTINGS)
    whole.finish()
    differences = compare(whole.uri, run.uri, tmp_path / "compared")
    attempts, left_out = run.output().count("trying again"), run.output().count("no checkpoint at step")
    record_result("failures_store_outage", {
        "store": "SeaweedFS, killed and started again", "away_s": away_s, "steps": SETTINGS["steps"], "workers": 1,
        "failed_attempts": attempts, "checkpoints_left_out": left_out, "restarts": len(run.resumed_after()), **differences})
    assert attempts and not run.resumed_after() and set(differences.values()) == {0.0}
