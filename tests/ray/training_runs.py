"""Training runs in processes of their own, on a Ray that the test owns: started, watched, killed, and compared with each other."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources.shapes import ShapesSource
from pixellm.storage import local_copy
from pixellm.train.checkpoint import find_latest_checkpoint, read_checkpoint
from pixellm.train.retention import list_checkpoints
from tests.conftest import ROOT
from tests.data.sources.build import build_all
from tests.train.examples import largest_difference

WAIT_S = 600.0  # nothing is as slow on a machine that works
FAST_RAY = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
# Two lanes: one worker takes both of them one after the other, two workers one each. Losses are logged at each step.
SETTINGS: dict[str, Any] = {
    "model": "tiny", "precision": "fp32", "photos_per_micro_step": 2, "max_conversations_per_photo": 1, "zero_stage": 2, "warmup_steps": 2,
    "log_every_steps": 1, "data_tasks_per_worker": 1, "stream_memory_mb": 16, "cpus_per_worker": 1, "max_failures": -1}


def write_scenes(folder: Path, num_scenes: int = 24) -> str:
    """Shards of drawn scenes."""
    write_shards(build_all(ShapesSource(num_scenes=num_scenes, questions_per_scene=1))[0], str(folder), ShardOptions())
    return str(folder)


class TrainingRun:
    """`jobs.train` as a process. `uri` is the run's folder, `output()` what it and its workers have said."""

    def __init__(self, name: str, shards: str, storage: str, num_workers: int, **changes: Any):
        values = SETTINGS | {"run": name, "data": f"[{shards}]", "storage": storage, "num_workers": num_workers,
                             "accumulation": 2 // num_workers} | changes
        self.uri, self.steps = f"{storage}/{name}", int(values["steps"])
        self.arguments = [sys.executable, "-m", "jobs.train", *(f"{key}={value}" for key, value in values.items())]
        self.log = Path(tempfile.mkstemp(prefix=f"{name}-", suffix=".log")[1])
        self.process = self.start()

    def start(self) -> subprocess.Popen:
        """Submit it (again)."""
        environment = os.environ | FAST_RAY | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_DEDUP_LOGS": "0"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.arguments, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        return self.process

    def output(self) -> str:
        """Of all starts."""
        return self.log.read_text(errors="replace")

    def resumed_after(self) -> list[int]:
        """The step of each checkpoint that the run went on from."""
        return [int(step) for step in re.findall(r"resuming \S+ after step (\d+)", self.output())]

    def step(self) -> int:
        """The step that it has logged last."""
        return int(([0, *re.findall(r"step (\d+)/\d+ ", self.output())])[-1])

    def newest(self) -> int:
        """The step of the newest finished checkpoint, 0 before there is one."""
        return max((each.step for each in list_checkpoints(self.uri)), default=0)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Until it holds. Fails when the run ends before, or nothing comes of it."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, f"the run ended while {what} was awaited:\n{self.output()[-6000:]}"
            assert time.monotonic() < deadline, f"{what} did not come:\n{self.output()[-6000:]}"
            time.sleep(0.1)

    def finish(self) -> None:
        """Until its last step."""
        self.process.wait(timeout=3 * WAIT_S)
        assert self.process.returncode == 0 and self.newest() == self.steps, self.output()[-6000:]


def kill_tree(process: psutil.Process) -> None:
    """SIGKILL for a process and all below it."""
    for each in [*process.children(recursive=True), process]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def ray_processes(name: str) -> list[psutil.Process]:
    """Processes of this test's Ray whose actor's class is `name`, the oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()[:1]) and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.create_time(), process))
        except psutil.Error:
            continue
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def training_workers() -> list[psutil.Process]:
    """Those that train."""
    return ray_processes("RayTrainWorker")


def read_losses(run_uri: str) -> dict[int, float]:
    """The total loss of each step, float32, the last word on a step that was taken twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(local_copy(f"{run_uri}/tensorboard")), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in events.Scalars("loss/total")}


def compare(one: str, other: str, folder: Path) -> dict[str, float]:
    """Largest differences of two runs that reached the same step: of the losses of all steps, and of the trained values at the end."""
    losses = read_losses(one), read_losses(other)
    assert losses[0].keys() == losses[1].keys() == set(range(1, len(losses[0]) + 1)), "a loss of each step is known"
    uris = [find_latest_checkpoint(uri) for uri in (one, other)]
    first, second = (read_checkpoint(uri, folder / str(i)) for i, uri in enumerate(uris) if uri)
    assert first.progress.step == second.progress.step and first.position == second.position
    return {"max_loss_difference": max(abs(losses[0][step] - losses[1][step]) for step in losses[0]),
            "max_parameter_difference": largest_difference(first.state.parameters, second.state.parameters),
            "max_moment_difference": max(largest_difference(first.state.moments[name], second.state.moments[name])
                                         for name in first.state.moments)}
