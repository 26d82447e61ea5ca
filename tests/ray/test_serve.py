"""A deployment on a Ray of its own, asked over HTTP, with a rule in place of the model."""

import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import ray
from ray import serve as ray_serve

from serve.app import build_application
from serve.config import AppConfig
from serve.schemas import Problem, SegmentResponse
from tests.serve.doubles import build_rule_segmenter
from tests.serve.test_ingress import as_form, as_json, photo_bytes
from tests.serve.test_segment import read_events

pytestmark = pytest.mark.ray
PNG = photo_bytes()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(local_ray):
    """Address of a running application."""
    config = AppConfig(model="models/test", engine={"num_slots": 4}, max_ongoing_requests=8, max_body_mb=1, num_cpus=0.5,
                       request_timeout_s=200, port=free_port())
    try:
        ray_serve.start(http_options={"host": config.host, "port": config.port})
        ray_serve.run(build_application(config, build_rule_segmenter), name=config.app_name)
        yield f"http://{config.host}:{config.port}"
    finally:
        ray_serve.shutdown()


def ask(server: str, **request) -> httpx.Response:
    return httpx.post(f"{server}/v1/segment", timeout=240, **request)


def assert_answers(server: str) -> None:
    assert ask(server, **as_form(PNG)).status_code == 200


def test_form_and_json_get_the_same_answer(server):
    answers = [SegmentResponse.model_validate(ask(server, **body).json()) for body in (as_form(PNG), as_json(PNG))]
    assert answers[0].masks == answers[1].masks and answers[0].text == answers[1].text
    assert answers[0].size == (20, 40) and answers[0].masks[0].area == 400


def test_health_documents_and_one_request_id(server):
    assert httpx.get(f"{server}/healthz").json() == {"status": "ok", "model": "test"}
    assert httpx.get(f"{server}/docs").status_code == 200
    assert "/v1/segment" in httpx.get(f"{server}/openapi.json").json()["paths"]
    assert httpx.get(f"{server}/healthz", headers={"x-request-id": "abc-1"}).headers.get_list("x-request-id") == ["abc-1"]


@pytest.mark.parametrize("body, status", [
    (as_form(b"not a photo"), 415),
    (as_form(photo_bytes("JPEG", (300, 300))[:900]), 422),
    (as_form(PNG, ""), 422),
    (as_form(b"x" * 2_000_000), 413),
    (as_json("not base64!"), 422),
    ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
    (as_form(PNG, "refuse this"), 422),
    (as_form(PNG, "poison"), 500),
])
def test_a_bad_request_gets_a_problem_and_the_server_lives_on(server, body, status):
    response = ask(server, **body)
    assert response.status_code == status, response.text
    problem = Problem.model_validate(response.json())
    assert problem.status == status and response.headers["x-request-id"] == problem.request_id
    assert_answers(server)


def test_a_body_without_a_declared_length_is_cut_off(server):
    def endless():
        for _ in range(400):
            yield b"x" * 10_000

    response = ask(server, content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert_answers(server)


def test_questions_do_not_wait_for_each_other_and_a_client_that_leaves_ends_its_own(server, record_result):
    with ThreadPoolExecutor(2) as pool:
        left = [pool.submit(httpx.post, f"{server}/v1/segment", timeout=3, **as_form(PNG, "wait")) for _ in range(2)]
        wait_for_text(server, "3 are open, 0 were left.")
        assert_answers(server)
        assert [type(each.exception()) for each in left] == [httpx.ReadTimeout] * 2
    left_at_s = time.monotonic()
    wait_for_text(server, "1 are open, 2 were left.")
    record_result("serving_client_leaves", {"slots_free_within_s": round(time.monotonic() - left_at_s, 3)})


def wait_for_text(server: str, text: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while (found := ask(server, **as_form(PNG, "count")).json()["text"]) != text:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_parts_arrive_while_the_answer_is_written_and_leaving_the_stream_ends_it(server):
    with httpx.stream("POST", f"{server}/v1/segment", timeout=60, **as_form(PNG, "wait", stream="true")) as response:
        lines = response.iter_lines()
        assert (response.status_code, next(lines)) == (200, "event: text")
        assert json.loads(next(lines).removeprefix("data: "))["text"] == "It is the left half."
        wait_for_text(server, "2 are open, 2 were left.")
    wait_for_text(server, "1 are open, 3 were left.")
    events = read_events(ask(server, **as_form(PNG, stream="true")).text)
    assert [kind for kind, _ in events] == ["text", "mask", "answer"]


def test_openais_client_and_the_probes(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    content = [{"type": "text", "text": "Which half?"}, {"type": "image_url", "image_url": {"url": url}}]
    chunks = list(client.chat.completions.create(model="test", messages=[{"role": "user", "content": content}], stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "It is the left half."
    assert httpx.get(f"{server}/readyz").json()["status"] == "ready" and httpx.get(f"{server}/livez").status_code == 200


def test_a_replica_that_dies_is_replaced_without_a_failed_request(server):
    replicas = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "#model#" in actor["name"]]
    assert replicas
    for actor in replicas:
        ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))
    response = ask(server, json={"image": base64.b64encode(PNG).decode(), "question": "Which half?"})
    assert response.status_code == 200, response.text
