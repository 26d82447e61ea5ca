"""Questions without a pause while replicas are killed and a new version takes over: `python -m tests.ray.serve_kills FOLDER NUM [seed]`.

HAProxy listens on all interfaces, so this runs in a network namespace of its own (`unshare --net`), where only the loopback is. Prints
one JSON object: what became of the requests, and what was done meanwhile.
"""

import io
import json
import random
import shutil
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
from PIL import Image
from ray import serve as ray_serve

from pixellm.data.sources.shapes import draw_scene
from pixellm.settings import load_yaml
from serve.app import build_app
from serve.config import AppConfig
from tests.conftest import ROOT
from tests.ray.namespace import bring_loopback_up
from tests.ray.training_runs import ray_processes

PORT, NUM_CLIENTS, NUM_PHOTOS = 8000, 6, 16
# The shipped file of the 7B model, with a model for the CPU.
ON_A_CPU = ["dtype=float32", "device=cpu", "num_gpus=0", "num_cpus=0.1", "ingress_num_cpus=0.1", "torch_threads=1", "name=null",
            "max_new_tokens=48", "engine={num_slots: 8}"]


class Traffic:
    """Clients that ask one question after another until `num_requests` were asked. None of them tries again."""

    def __init__(self, num_requests: int, photos: list[bytes]):
        self._todo = iter(range(num_requests))
        self._photos, self._lock = photos, threading.Lock()
        self.statuses: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.texts: dict[int, set[str]] = {index: set() for index in range(len(photos))}
        self.failures: list[str] = []
        self.latencies_s: list[float] = []
        self._started = time.monotonic()

    @property
    def num_done(self) -> int:
        return sum(self.statuses.values())

    def run(self) -> None:
        """One client."""
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=300) as client:
            while (number := self._next()) is not None:
                self._ask(client, number % len(self._photos))

    def _next(self) -> int | None:
        with self._lock:
            return next(self._todo, None)

    def _ask(self, client: httpx.Client, index: int) -> None:
        started = time.monotonic()
        try:
            response = client.post("/v1/segment", params={"question": "which of these can roll?"}, content=self._photos[index],
                                   headers={"content-type": "image/png"})
            status, body = str(response.status_code), response.text
        except httpx.TransportError as error:
            status, body = type(error).__name__, str(error)
        with self._lock:
            self.statuses[status] += 1
            self.latencies_s.append(time.monotonic() - started)
            if status == "200":
                answer = json.loads(body)
                self.versions[answer["model"]] += 1
                self.texts[index].add(answer["text"])
            else:
                self.failures.append(f"{self.num_done} at {time.monotonic() - self._started:.2f} s: {status} {body[:300]}")


def kill_one(kind: str, draw: random.Random) -> None:
    """SIGKILL for the process of one replica of the deployment `kind`."""
    running = ray_processes(f"ServeReplica:pixellm:{kind}")
    assert running, f"no process of {kind} runs"
    draw.choice(running).kill()


def build_config(model: Path) -> AppConfig:
    """The production file with `model`."""
    return load_yaml(ROOT / "serve/configs/7b.yaml", AppConfig, [*ON_A_CPU, f"model={model}"])


def deploy(model: Path) -> None:
    """Until all replicas are of this version. Serve calls a deployment failed when a replica dies meanwhile, and goes on with it."""
    config = build_config(model)
    target = ray_serve.RunTarget(build_app(config.model_dump(mode="json")), name=config.app_name)
    ray_serve.run_many([target], wait_for_applications_running=False)
    while ray_serve.status().applications[config.app_name].status != "RUNNING":
        time.sleep(0.5)


def run(folder: Path, num_requests: int, seed: int = 0) -> dict[str, Any]:
    """Six kills and an upgrade, each after its share of the requests; two of the kills while the upgrade runs."""
    draw, models = random.Random(seed), [folder / "one", folder / "two"]
    for model in models:
        shutil.copytree(ROOT / "pixellm/model/pretrained/tiny", model)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000,
             _temp_dir=str(folder / "r"))
    ray_serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    deploy(models[0])
    traffic = Traffic(num_requests, [encode_scene(index) for index in range(NUM_PHOTOS)])
    started, upgrade = time.monotonic(), ThreadPoolExecutor(1)
    due = {0.1: "model", 0.25: "ingress", 0.4: "upgrade", 0.42: "model", 0.45: "ingress", 0.75: "model", 0.85: "ingress"}
    done: list[dict[str, Any]] = []
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        asking = [clients.submit(traffic.run) for _ in range(NUM_CLIENTS)]
        for share, what in due.items():
            while traffic.num_done < share * num_requests:
                time.sleep(0.05)
            if what == "upgrade":
                upgraded = upgrade.submit(deploy, models[1])
            else:
                kill_one(what, draw)
            done.append({"after_requests": traffic.num_done, "at_s": round(time.monotonic() - started, 1), "what": what})
            print(done[-1], flush=True)
        for each in asking:
            each.result()
    duration_s = time.monotonic() - started
    upgraded.result(timeout=300)
    latencies_s = np.percentile(traffic.latencies_s, (50, 99, 100)).round(2).tolist()
    result = {"num_requests": traffic.num_done, "num_failed": len(traffic.failures), "failures": traffic.failures[:20],
              "statuses": dict(traffic.statuses), "versions": dict(traffic.versions),
              "photos_with_one_text": sum(len(texts) == 1 for texts in traffic.texts.values()), "num_photos": NUM_PHOTOS,
              "requests_per_s": round(num_requests / duration_s, 1), "latency_s_median_p99_max": latencies_s, "done": done}
    ray.shutdown()
    return result


def encode_scene(index: int) -> bytes:
    """A PNG."""
    stream = io.BytesIO()
    Image.fromarray(draw_scene(0, index, 96).image).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    bring_loopback_up()
    print(json.dumps(run(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
