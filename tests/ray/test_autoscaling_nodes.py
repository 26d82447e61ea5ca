"""Work makes nodes appear and idle ones go: a data job's, then those of the replicas that a load of 1, 8, 1, 8, 1 clients asks for."""

import itertools
import json
import tempfile

import pytest

from jobs.benchmarks.steps import Quantity, draw_steps
from tests.ray.namespace import run_apart
from tests.serve.test_autoscaling import changes_of_direction

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_replicas_and_nodes_follow_the_load(record_result, request):
    with tempfile.TemporaryDirectory(prefix="a") as folder:
        output = run_apart("tests.ray.autoscaling_run", folder, env={"RAY_TMPDIR": folder})
    result = json.loads(output.splitlines()[-1])
    seen, phases = result["seen"], result["phases"]
    record_result("autoscaling", result)
    if results := request.config.getoption("--results"):
        times_s = [each["at_s"] for each in seen]
        rates = [0.0, *(max(0.0, after["answers"] - before["answers"]) for before, after in itertools.pairwise(seen))]
        draw_steps("A data job, then clients that ask one question after another: replicas and nodes follow", [
            Quantity("clients", times_s, [each["clients"] for each in seen]), Quantity("answers/s", times_s, rates),
            Quantity("model replicas that run", times_s, [each["replicas"] for each in seen]),
            Quantity("nodes besides the head", times_s, [each["nodes"] for each in seen])]).save(f"{results}/autoscaling.png")

    def between(start_s: float, end_s: float, what: str) -> list[int]:
        return [int(each[what]) for each in seen if start_s <= each["at_s"] < end_s]

    assert result["statuses"] == [200]
    assert max(between(phases["data job"], phases["data job ended"], "nodes")) >= 2
    assert min(between(phases["data job ended"], phases["deployed"] + 1, "nodes")) == 0 == seen[-1]["nodes"]
    starts = [*(each["at_s"] for each in result["steps"]), phases["application deleted"]]
    for each, (start_s, end_s) in zip(result["steps"], itertools.pairwise(starts), strict=True):
        replicas = between(start_s, end_s, "replicas")
        assert changes_of_direction(replicas) <= 1
        assert replicas[-1] == each["replicas"], "a step ends with as many replicas as it needs"
        assert max(between(start_s, end_s, "nodes")) >= max(replicas), "a node has one CPU, so a replica needs its own"
