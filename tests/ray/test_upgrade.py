"""Real Serve: a new version by another `model`, a broken one, a second model, the engine's load as Serve sees it, and what logs hold."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve as ray_serve

from serve.app import build_application
from serve.autoscaling import LOAD_METRIC
from serve.config import AppConfig
from serve.model_config import AutoscalingConfig, ModelConfig
from tests.ray.test_serve import free_port
from tests.serve.doubles import RuleSegmenter
from tests.serve.test_ingress import as_form, as_photo, photo_bytes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
PNG = photo_bytes()


class VersionedSegmenter(RuleSegmenter):
    """Says its version in each answer; version `broken` loads and cannot answer, so its canary fails."""

    def __init__(self, version: str):
        super().__init__()
        self.version = version

    def _answer(self, image, question):
        if self.version == "broken":
            raise RuntimeError("these weights are broken")
        answer = super()._answer(image, question)
        return answer.__class__(**{**answer.__dict__, "text": f"{self.version}: {answer.text}"}) if "version" in question else answer


def build_versioned(config):
    return VersionedSegmenter(config.model.rpartition("/")[2])


@pytest.fixture(scope="module")
def deploy(local_ray):
    """Deploys a version at one address; returns without waiting for it."""
    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})

    def run(version: str) -> str:
        config = AppConfig(model=f"models/{version}", name="shapes", engine={"num_slots": 2}, num_cpus=0.2, request_timeout_s=60, port=port,
                           max_ongoing_requests=8, autoscaling=AutoscalingConfig(max_replicas=2, look_back_period_s=2, upscale_delay_s=0),
                           more_models=(ModelConfig(model="models/other", num_cpus=0.2),))
        ray_serve.run(build_application(config, build_versioned), name=config.app_name, blocking=False, _local_testing_mode=False)
        return f"http://127.0.0.1:{port}"

    yield run
    ray_serve.shutdown()


def version_of(url: str, **more) -> str:
    response = httpx.post(f"{url}/v1/segment", timeout=60, **as_form(PNG, "Which version?", **more))
    assert response.status_code == 200, response.text
    return response.json()["text"].partition(":")[0]


def wait_until(is_so, timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_versions_take_over_without_a_failed_request_and_a_broken_one_never_does(deploy):
    url = deploy("one")
    assert (version_of(url), version_of(url, model="other")) == ("one", "other")
    seen: list[str] = []
    is_over = False

    def ask_on() -> None:
        while not is_over:
            seen.append(version_of(url))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask_on) for _ in range(2)]
        try:
            deploy_and_wait(deploy, "two", "RUNNING")
            wait_until(lambda: seen[-1:] == ["two"])
            num_before = len(seen)
            deploy_and_wait(deploy, "broken", "DEPLOY_FAILED")
            wait_until(lambda: len(seen) > num_before + 20)
        finally:
            is_over = True
        for each in asking:
            each.result()  # raises what failed
    assert seen.index("two") == seen.count("one") or abs(seen.index("two") - seen.count("one")) <= 8  # while both run, either answers
    assert set(seen[num_before:]) == {"two"} and version_of(url, model="other") == "other"


def deploy_and_wait(deploy, version: str, status: str) -> None:
    try:
        deploy(version)
    except RuntimeError:
        assert status == "DEPLOY_FAILED"
    wait_until(lambda: ray_serve.status().applications["pixellm"].status == status)


def test_the_engines_load_adds_a_replica(deploy):
    url = deploy("three")

    def num_replicas() -> int:
        return sum("#model#" in actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))

    wait_until(lambda: ray_serve.status().applications["pixellm"].status == "RUNNING")
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(httpx.post, f"{url}/v1/segment", timeout=100, headers={"x-answer-timeout-s": "55"}, **as_form(PNG, "wait"))
                   for _ in range(6)]
        wait_until(lambda: num_replicas() == 2)
        assert [each.result().status_code for each in waiting] == [504] * 6
    assert LOAD_METRIC == "engine_load"


def test_no_log_holds_a_question(deploy):
    url = deploy("three")
    for body in (as_photo(PNG, "the zanzibar question"), as_form(PNG, "zanzibar poison"), as_form(b"zanzibar")):
        httpx.post(f"{url}/v1/segment", timeout=60, **body)
    httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer zanzibar"})
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    files = [file for file in logs.rglob("*") if file.is_file() and file.suffix in (".log", ".out", ".err")]
    assert any("serve" in str(file) for file in files)
    assert not [file for file in files if b"zanzibar" in file.read_bytes()]
