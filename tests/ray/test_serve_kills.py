"""Ten thousand questions while three model replicas and three ingress replicas are killed and a new version takes over: none fails."""

import json
import tempfile

import pytest

from tests.ray.namespace import run_apart

NUM_REQUESTS = 10_000

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_ten_thousand_requests_through_kills_and_an_upgrade(record_result):
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        paths = {f"RAY_SERVE_HAPROXY_{name}": f"{folder}/{file}" for name, file in (
            ("CONFIG_FILE_LOC", "haproxy.cfg"), ("SOCKET_PATH", "admin.sock"), ("SERVER_STATE_BASE", "."), ("SERVER_STATE_FILE", "state"))}
        output = run_apart("tests.ray.serve_kills", folder, NUM_REQUESTS, env=paths, shell="source platform/serve.sh")
    result = json.loads(output.splitlines()[-1])
    record_result("serving_kills", result)
    assert result["num_failed"] == 0, result["failures"]
    assert result["num_requests"] == NUM_REQUESTS and set(result["versions"]) == {"one", "two"}
    assert sorted(each["what"] for each in result["done"]) == ["ingress"] * 3 + ["model"] * 3 + ["upgrade"]
    assert result["photos_with_one_text"] == result["num_photos"]
