"""Jobs from a process that has an address and a token only, to a head started as `platform/local` starts one: followed, failed, stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.ray.training_runs import ray_processes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
START_HEAD = """
source platform/local/lib.sh; source platform/local/cluster.sh
begin_run; reserve_ports; start_ray "$RUN_DIR/ray.log"
echo "$RAY_API $RAY_AUTH_TOKEN $RUN_DIR"
wait "$RAY_PID"
"""
LARGEST_PACKAGE_BYTES = 20_000_000
NOT_SHIPPED = (".git/", ".venv/", ".local/", "demo-output/", "docs/", "tests/", ".github/")


@dataclass(frozen=True)
class Head:
    """A running head: its job server's address, its token, and the folder of its run."""

    address: str
    token: str
    folder: Path

    def submit(self, *command: str, token: str | None = None, options: tuple[str, ...] = ()) -> subprocess.Popen:
        """`ray job submit` in an environment that knows nothing but the address and the token."""
        return self.ray("submit", "--working-dir", str(ROOT), *options, "--", "python", "-m", *command, token=token)

    def ray(self, *arguments: str, token: str | None = None) -> subprocess.Popen:
        """`ray job …`; `token` in place of the right one."""
        action, *rest = arguments
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(self.folder), "RAY_AUTH_MODE": "token",
                       "RAY_AUTH_TOKEN": self.token if token is None else token}
        return subprocess.Popen(["ray", "job", action, "--address", self.address, *rest], cwd=self.folder, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def get(self, path: str) -> httpx.Response:
        """Of the dashboard, with the token."""
        return httpx.get(f"{self.address}{path}", headers={"authorization": f"Bearer {self.token}"}, timeout=60)

    def jobs(self) -> list[dict]:
        """All that were submitted."""
        return [job for job in self.get("/api/jobs/").json() if job["submission_id"]]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Ray gives a node 30 s to start, which a machine that is busy with other things can take: then it is started again."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for _ in range(3):
        running = subprocess.Popen(["bash", "-c", START_HEAD], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
                                   env=environment)
        said = running.stdout.readline().split()
        if said:
            break
        running.wait(60)
    try:
        address, token, folder = said
        yield Head(address, token, Path(folder))
    finally:
        running.send_signal(signal.SIGTERM)  # the script then ends all that it started
        running.wait(60)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert (process.returncode == 0) == (status == 0), output[-3000:]
    return output


@pytest.mark.parametrize("token", ["", "0" * 40])
def test_without_the_right_token_nothing_starts(head, token):
    output = finish(head.submit("jobs.inspect_data", token=token), status=1)
    assert re.search("token|401|403|nauthorized|nauthenticated", output), output[-2000:]
    assert head.jobs() == [] and httpx.get(f"{head.address}/api/jobs/", timeout=60).status_code in (401, 403)


def test_a_job_is_followed_and_its_package_is_small(head, tmp_path):
    output = finish(head.submit("jobs.prepare_data", "source=shapes", "num_scenes=12", f"output={tmp_path}/shards"))
    assert re.search(r"rows +12\b", output), output[-3000:]
    assert (tmp_path / "shards" / "manifest.json").exists()
    packages = head.folder.glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*")
    (package,) = {path.resolve() for path in packages if path.is_dir()}
    files = [file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()]
    assert {"jobs/train.py", "pixellm/__init__.py", "serve/app.py", "pyproject.toml"} <= set(files)
    assert not [file for file in files if file.startswith(NOT_SHIPPED)]
    assert sum((package / file).stat().st_size for file in files) < LARGEST_PACKAGE_BYTES


def test_a_failing_job_says_why_and_passes_its_status_on(head):
    output = finish(head.submit("jobs.train", "stepps=3"), status=1)
    assert "did you mean 'steps'" in output
    assert [job["status"] for job in head.jobs() if "stepps" in job["entrypoint"]] == ["FAILED"]


@pytest.mark.slow
def test_the_whole_way_and_a_job_that_is_stopped(head, tmp_path):
    shards, runs = f"{tmp_path}/shards", f"{tmp_path}/runs"
    finish(head.submit("jobs.prepare_data", "source=shapes", "num_scenes=24", "shard_size_mb=0.05", "row_group_mb=0.02",
                       f"output={shards}"))
    train = ("jobs.train", f"data=[{shards}]", f"storage={runs}", "num_workers=1", "photos_per_micro_step=2", "stream_memory_mb=16")
    assert "step 3/3" in finish(head.submit(*train, "run=short", "steps=3", "log_every_steps=1"))
    finish(head.submit("jobs.export", f"checkpoint={runs}/short", f"output={tmp_path}/model"))
    evaluated = finish(head.submit("jobs.evaluate", f"shards={shards}", f"model={tmp_path}/model", f"output={tmp_path}/report",
                                   "max_rows=4", "max_new_tokens=24", "attention_examples=0"))
    assert '"num_photos": 4' in evaluated and (tmp_path / "report" / "report.html").exists()

    following = head.submit(*train, "run=long", "steps=100000", "log_every_steps=1", options=("--submission-id", "long"))
    assert following.stdout is not None
    lines = []
    for line in following.stdout:  # while it runs, not when it has ended
        lines.append(line)
        if re.search(r"step \d+/100000", line):
            break
    else:
        raise AssertionError("".join(lines)[-3000:])
    assert ray_processes("RayTrainWorker")
    finish(head.ray("stop", "long"))
    following.wait(120)
    assert {job["submission_id"]: job["status"] for job in head.jobs()}["long"] == "STOPPED"
    deadline = time.monotonic() + 120
    while ray_processes("RayTrainWorker") or ray_processes("RayTrainController"):
        assert time.monotonic() < deadline, "the workers of the stopped job are still there"
        time.sleep(0.5)
