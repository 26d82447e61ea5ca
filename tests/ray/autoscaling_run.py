"""A cluster that grows and shrinks with its work: `python -m tests.ray.autoscaling_run FOLDER`, only in namespaces of its own.

Nodes are Ray's fake ones, processes of this machine that the real autoscaler starts and ends. First a data job runs, then clients ask a
real model in steps of 1 and 8. Prints one JSON object: clients, replicas and nodes at each second, and when each step began.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve as ray_serve
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.cluster_utils import AutoscalingCluster

from serve.app import build_app
from serve.config import AppConfig
from tests.conftest import ROOT
from tests.ray.namespace import bring_loopback_up
from tests.ray.serve_kills import encode_scene

PORT, MAX_NODES = 8000, 5
CLIENTS_AND_REPLICAS = ((1, 1), (8, 4), (1, 1), (8, 4), (1, 1))  # how many ask, and how many replicas they need
STEP_S = 90.0  # at least; a step lasts until there are as many replicas as it needs, which on a busy machine import for a minute and more
IDLE_S = 20  # until a node without work goes
# A replica and a data task take a node's CPU each; the head takes none. Delays are short so that the run is.
WORKER = {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, "node_config": {}, "min_workers": 0, "max_workers": MAX_NODES}
APP: dict[str, Any] = {
    "model": str(ROOT / "pixellm/model/pretrained/tiny"), "torch_threads": 1, "num_cpus": 1, "max_new_tokens": 48, "port": PORT,
    "engine": {"num_slots": 2}, "max_ongoing_requests": 8, "autoscaling": {
        "max_replicas": 4, "target_load": 1.0, "upscale_delay_s": 3, "downscale_delay_s": 15, "look_back_period_s": 10}}


class FakeNodes(AutoscalingCluster):
    """With the configuration that Ray's wheel leaves out."""

    def _generate_config(self, head_resources: dict, worker_node_types: dict, autoscaler_v2: bool = False, **more: Any) -> dict[str, Any]:
        commands = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands", "head_start_ray_commands",
                    "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        return {"cluster_name": "fake", "max_workers": MAX_NODES, "upscaling_speed": 1.0, "head_node_type": "ray.head.default",
                "provider": {"type": "external", "module": FakeMultiNodeProvider.__module__ + ".FakeMultiNodeProvider",
                             "head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": autoscaler_v2},
                "available_node_types": {**worker_node_types, "ray.head.default": head}, "auth": {}, "file_mounts": {},
                **{key: [] for key in commands}, **more}


class Watch:
    """What there is at each second: clients that ask, replicas that run, nodes besides the head, and answers so far."""

    def __init__(self) -> None:
        self.num_clients = self.num_answers = 0
        self.statuses: set[int] = set()
        self.seen: list[dict[str, float]] = []
        self._started, self._is_over = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def now_s(self) -> float:
        """Since the start."""
        return round(time.monotonic() - self._started, 1)

    def _look(self) -> None:
        while not self._is_over.wait(1):
            nodes = sum(node["Alive"] for node in ray.nodes()) - 1
            app = ray_serve.status().applications.get("pixellm")
            replicas = app.deployments["model"].replica_states.get("RUNNING", 0) if app and "model" in app.deployments else 0
            self.seen.append({"at_s": self.now_s(), "clients": self.num_clients, "replicas": replicas, "nodes": nodes,
                              "answers": self.num_answers})

    def wait_for(self, what: str, number: int, timeout_s: float = 300) -> None:
        """Until there are so many nodes or replicas."""
        deadline = time.monotonic() + timeout_s
        while not (self.seen and self.seen[-1][what] == number):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{number} {what} were to be: {self.seen[-1:]}")
            time.sleep(0.2)

    def stop(self) -> list[dict[str, float]]:
        """All that was seen."""
        self._is_over.set()
        self._thread.join()
        return self.seen


def ask_until(is_over: threading.Event, watch: Watch, photo: bytes) -> None:
    """One client."""
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=300) as client:
        while not is_over.is_set():
            response = client.post("/v1/segment", params={"question": "which of these can roll?"}, content=photo,
                                   headers={"content-type": "image/png"})
            watch.statuses.add(response.status_code)
            watch.num_answers += 1


def step(watch: Watch, num_clients: int, num_replicas: int) -> None:
    """So many clients, until there are so many replicas."""
    watch.num_clients, is_over = num_clients, threading.Event()
    threads = [threading.Thread(target=ask_until, args=(is_over, watch, encode_scene(index))) for index in range(num_clients)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(STEP_S)
        watch.wait_for("replicas", num_replicas)
    finally:
        is_over.set()
    for thread in threads:
        thread.join()


def run(folder: Path) -> dict[str, Any]:
    """See the module."""
    cluster = FakeNodes({"CPU": 0, "object_store_memory": 200_000_000}, {"worker": WORKER}, autoscaler_v2=True,
                        idle_timeout_minutes=IDLE_S / 60)
    cluster.start()
    context = ray.init(address="auto", log_to_driver=False)
    ray_serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    watch, phases = Watch(), {}
    phases["data job"] = watch.now_s()
    subprocess.run([sys.executable, "-m", "jobs.prepare_data", "--config", "jobs/configs/prepare_shapes_train.yaml", "num_scenes=4000",
                    f"output={folder}/shapes"], cwd=ROOT, check=True, stdout=sys.stderr,
                   env=os.environ | {"RAY_ADDRESS": context.address_info["gcs_address"]})
    phases["data job ended"] = watch.now_s()
    watch.wait_for("nodes", 0)
    config = AppConfig(**APP)
    phases["deployed"] = watch.now_s()
    ray_serve.run(build_app(config.model_dump(mode="json")), name=config.app_name)
    steps = []
    for num_clients, num_replicas in CLIENTS_AND_REPLICAS:
        steps.append({"at_s": watch.now_s(), "clients": num_clients, "replicas": num_replicas})
        step(watch, num_clients, num_replicas)
    watch.num_clients = 0
    phases["application deleted"] = watch.now_s()
    ray_serve.delete(config.app_name)
    watch.wait_for("nodes", 0)
    return {"phases": phases, "steps": steps, "statuses": sorted(watch.statuses), "seen": watch.stop()}


if __name__ == "__main__":
    bring_loopback_up()
    print(json.dumps(run(Path(sys.argv[1]))))
