"""Without Ray's token a stranger runs code in every replica; with it in none, and only then this project serves."""

import json
import secrets
import tempfile

import pytest

from tests.ray.namespace import run_apart

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def attack(mode: str) -> dict:
    """The findings of `tests.ray.stranger` on a cluster of that mode."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        output = run_apart("tests.ray.stranger", folder, env={"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": secrets.token_hex(20)})
    return json.loads(output.splitlines()[-1])


def test_without_a_token_a_strangers_payload_runs_and_the_application_is_refused():
    found = attack("disabled")
    assert found["mode"] == "disabled" and found["num_ran"] == found["num_replicas"] == 2, found
    assert "asks for no token" in found["refusal"] and "allow_cluster_without_token" in found["refusal"]


def test_with_a_token_no_payload_runs():
    found = attack("token")
    assert found["mode"] == "token" and found["num_ran"] == 0 and found["refusal"] == "", found
    assert found["statuses"].count("UNAUTHENTICATED") == found["num_replicas"], found
