"""HAProxy under `platform/serve.sh`: 1,100 half-sent headers and 70 slow bodies, and every genuine question is answered meanwhile."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.ray.namespace import run_apart

MOST_MEMORY_MB = 1000  # of HAProxy: 411 when measured, of which 70 bodies of 3.9 MB are 273


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_questions_are_answered_while_others_never_finish_theirs(record_result):
    with tempfile.TemporaryDirectory(prefix="h") as folder:
        output = run_apart("tests.platform.slow_clients", folder, env={}, shell="source platform/serve.sh")
    result = json.loads(output.splitlines()[-1])
    record_result("serving_slow_clients", result)
    assert result["num_half_headers"] >= 1000 and result["num_slow_bodies"] == 70  # they were there
    assert result["another_address"]["statuses"] == result["the_attackers_address"]["statuses"] == {"200": 30}
    assert result["num_half_headers_cut_off"] >= 1100 and result["num_slow_bodies_cut_off"] >= 70
    assert result["haproxy_mb"] < MOST_MEMORY_MB
    assert len(result["headers_dropped"]) == 6 and result["plain_question"] == 200


def start(folder, configuration: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """`platform/haproxy.sh` on a configuration file, with HAProxy's own check in place of a start; what it said, and the file after it."""
    file = folder / "haproxy.cfg"
    file.write_text(configuration)
    command = ["bash", "-c", 'source platform/serve.sh && exec "$RAY_SERVE_HAPROXY_BINARY_PATH" -c -f "$0" -dR', str(file)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False), file.read_text()


CONFIGURATION = """defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
frontend prometheus
    bind :9101
    log global
frontend http_frontend
    bind *:8000
    default_backend default_backend
backend default_backend
    http-request return status 404
listen stats
  bind *:8404
"""


def test_limits_are_written_once_and_haproxy_takes_them(tmp_path):
    done, once = start(tmp_path, CONFIGURATION)
    assert done.returncode == 0, done.stderr
    again, twice = start(tmp_path, once)
    assert again.returncode == 0 and twice == once and once.count("timeout http-request 10s") == 1
    assert "bind 127.0.0.1:9101" in once and "bind 127.0.0.1:8404" in once and "bind *:8000" in once


def test_a_configuration_that_has_changed_is_an_error_and_never_a_start_without_limits(tmp_path):
    done, _ = start(tmp_path, CONFIGURATION.replace("frontend http_frontend", "frontend ingress"))
    assert done.returncode != 0 and "frontend http_frontend" in done.stderr
