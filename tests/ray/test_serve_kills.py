"""Ten thousand questions while three model replicas and three ingress replicas are killed and a new version takes over: none fails."""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from tests.conftest import ROOT

NUM_REQUESTS = 10_000
NAMESPACE = ["unshare", "--user", "--map-root-user", "--net"]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


def has_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not has_namespaces(), reason="this machine gives no network namespace (unshare --user --net)")
def test_ten_thousand_requests_through_kills_and_an_upgrade(record_result):
    with tempfile.TemporaryDirectory(prefix="k") as folder:
        paths = {f"RAY_SERVE_HAPROXY_{name}": f"{folder}/{file}" for name, file in (
            ("CONFIG_FILE_LOC", "haproxy.cfg"), ("SOCKET_PATH", "admin.sock"), ("SERVER_STATE_BASE", "."), ("SERVER_STATE_FILE", "state"))}
        as_shipped = ["bash", "-c", 'source platform/serve.sh && exec "$@"', "bash"]
        command = [*as_shipped, *NAMESPACE, sys.executable, "-m", "tests.ray.serve_kills", folder, str(NUM_REQUESTS)]
        ended = subprocess.run(command, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-6000:]
    result = json.loads(ended.stdout.splitlines()[-1])
    record_result("serving_kills", result)
    assert result["num_failed"] == 0, result["failures"]
    assert result["num_requests"] == NUM_REQUESTS and set(result["versions"]) == {"one", "two"}
    assert sorted(each["what"] for each in result["done"]) == ["ingress"] * 3 + ["model"] * 3 + ["upgrade"]
    assert result["photos_with_one_text"] == result["num_photos"]
