"""`jobs.undeploy` under load: every request that was in flight gets its answer, also those that waited for a place in the model."""

import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import ray
from ray import serve as ray_serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from serve.cluster import build_application_entry, count_requests, undeploy, wait_until_running
from serve.config import AppConfig
from tests.conftest import ROOT
from tests.ray.test_serve import free_port
from tests.serve.test_ingress import as_form, photo_bytes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
PNG = photo_bytes()
NUM_REQUESTS, NUM_HELD = 30, 8  # of 30 in flight the model replica holds 8: 22 wait in the router of the ingress replica


@pytest.fixture
def client():
    """Serve's REST API on a Ray of its own, in a folder with a short name: socket paths end at 107 bytes."""
    folder = tempfile.mkdtemp(prefix="u")
    cluster = ray.init(address="local", num_cpus=4, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=free_port(),
                       log_to_driver=False, object_store_memory=100_000_000, _temp_dir=folder)
    try:
        yield ServeSubmissionClient(f"http://{cluster.dashboard_url}")
    finally:
        ray_serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def test_thirty_requests_in_flight_are_answered_and_then_serve_is_gone(client, record_result):
    config = AppConfig(model="models/test", engine={"num_slots": 4}, num_cpus=0.1, max_ongoing_requests=NUM_HELD, port=free_port(),
                       autoscaling={"max_replicas": 4, "upscale_delay_s": 600})
    entry = build_application_entry(config, {"env_vars": {"PYTHONPATH": str(ROOT)}}) | {"import_path": "tests.ray.slow_app:build_slow_app"}
    client.deploy_applications({"http_options": {"host": config.host, "port": config.port}, "applications": [entry]})
    wait_until_running(client, config.app_name)
    url = f"http://{config.host}:{config.port}/v1/segment"

    def ask(_: int) -> int:
        return httpx.post(url, timeout=120, **as_form(PNG)).status_code

    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        asked = [pool.submit(ask, number) for number in range(NUM_REQUESTS)]
        deadline = time.monotonic() + 30
        while count_requests(client, config.app_name) < NUM_REQUESTS + NUM_HELD:  # each is in the ingress, and those held in the model too
            assert time.monotonic() < deadline
            time.sleep(0.1)
        started, num_before = time.monotonic(), sum(each.done() for each in asked)
        num_lost = undeploy(client, config.app_name, timeout_s=120, poll_s=0.2)
        statuses = [each.result() for each in asked]
    record_result("serving_undeploy", {"num_in_flight": NUM_REQUESTS - num_before, "num_lost": NUM_REQUESTS - statuses.count(200),
                                       "took_s": round(time.monotonic() - started, 1)})
    assert statuses == [200] * NUM_REQUESTS and num_lost == 0 and num_before <= NUM_REQUESTS // 2
    deadline = time.monotonic() + 60
    while True:  # Serve itself ends with its last application
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.5)
