"""client.py against a real server that misbehaves: none lost, none paid twice, limits kept, and the key nowhere."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from pixellm.curation import budget as budgets
from pixellm.curation import client as clients
from pixellm.curation.budget import Budget, in_process
from pixellm.curation.chat import ChatRequest
from pixellm.curation.client import ChatClient, retry_after_s
from pixellm.errors import ConfigError, ServerError, SpendingCapError, StorageError
from tests.conftest import ROOT
from tests.curation.ask_many import CONCURRENCY, ask_many, endpoint_config
from tests.curation.endpoint import FAULTS, KEY, KEY_VARIABLE, Endpoint, serving
from tests.fixtures_s3 import S3Store

NUM_REQUESTS = 5000


@pytest.fixture(autouse=True)
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def complete(endpoint: Endpoint, cache: object, *requests: ChatRequest, budget: Budget | None = None, **changes):
    """All of them at a time: the answers, or what was raised."""
    config = endpoint_config(endpoint.url, **changes)

    async def run():
        call = in_process(budget or Budget({"test": config}))
        async with ChatClient(config, "test", call, str(cache)) as client:
            return await asyncio.gather(*map(client.complete, requests), return_exceptions=True)

    return asyncio.run(run())


def request(text: str = "Why?") -> ChatRequest:
    return ChatRequest("stage", "prompt.1", (text,))


def test_of_5000_requests_none_is_lost_and_none_paid_twice(tmp_path: Path) -> None:
    with serving(Endpoint()) as endpoint:
        answers, costs = asyncio.run(ask_many(endpoint_config(endpoint.url), str(tmp_path), NUM_REQUESTS))
    assert set(FAULTS) <= set(endpoint.befell) and sum(endpoint.befell.values()) > NUM_REQUESTS + 200, "everything has happened"
    assert len(endpoint.delivered) == costs.num_paid == NUM_REQUESTS and set(endpoint.delivered.values()) == {1}
    assert costs.num_refused == sum(endpoint.befell[fault] for fault in ("too_many", "too_many_until", "broken"))
    assert costs.num_unsure == sum(endpoint.befell[fault] for fault in ("dropped", "cut", "garbled", "slow"))
    assert len({answer.request for answer in answers}) == NUM_REQUESTS == len(list(tmp_path.rglob("*.json")))
    assert endpoint.most_open <= CONCURRENCY
    assert (costs.input_tokens, costs.output_tokens) == tuple(sum(getattr(each, f"{way}_tokens") for each in answers)
                                                              for way in ("input", "output"))
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY in file.read_text()]


def test_a_kill_in_the_middle_pays_for_nothing_that_was_there(tmp_path: Path) -> None:
    """What was on its way when the process was killed may be paid again: at most as many as run at a time."""
    with serving(Endpoint(seed=1)) as endpoint:
        command = [sys.executable, "-m", "tests.curation.ask_many", endpoint.url, str(tmp_path), str(NUM_REQUESTS)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        while sum(endpoint.delivered.values()) < 2000:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        cached = {file.stem for file in tmp_path.rglob("*.json")}
        _, costs = asyncio.run(ask_many(endpoint_config(endpoint.url), str(tmp_path), NUM_REQUESTS))
    assert 1900 < len(cached) == costs.num_cached < NUM_REQUESTS and costs.num_paid == NUM_REQUESTS - len(cached)
    twice = {endpoint.keys[name] for name, count in endpoint.delivered.items() if count > 1}
    assert len(endpoint.delivered) == NUM_REQUESTS and max(endpoint.delivered.values()) <= 2
    assert not twice & cached and len(twice) <= CONCURRENCY


def test_the_cache_on_s3(s3_store: S3Store) -> None:
    with serving(Endpoint(faults={})) as endpoint:
        first, costs = asyncio.run(ask_many(endpoint_config(endpoint.url), s3_store.uri, 50))
        again, more = asyncio.run(ask_many(endpoint_config(endpoint.url), s3_store.uri, 60))
    assert again[:50] == first and (costs.num_paid, more.num_cached, more.num_paid) == (50, 50, 10)


def test_the_same_request_at_a_time_is_one(tmp_path: Path) -> None:
    with serving(Endpoint(faults={})) as endpoint:
        answers = complete(endpoint, tmp_path, request(), request(), request("Who?"), request())
        endpoint.url = endpoint.url.replace("127.0.0.1", "localhost")
        moved = complete(endpoint, tmp_path, request())
    assert sum(endpoint.delivered.values()) == 2 and answers[0] == answers[1] == answers[3] == moved[0] != answers[2]


def test_the_environments_proxy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Endpoint(faults={})) as endpoint:
        monkeypatch.setenv("http_proxy", endpoint.url.removesuffix("/v1"))
        endpoint.url = "http://models.test/v1"
        answer, = complete(endpoint, tmp_path, request())
        monkeypatch.setenv("no_proxy", "models.test")
        error, = complete(endpoint, tmp_path, request("Who?"), total_timeout_s=0.1)
    assert list(endpoint.delivered.values()) == [1] and answer.served_by == "test-of-today" and "cannot be reached" in error.detail


def test_retry_after_is_waited_for_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`too_many_until` names a date up to 1.5 s away; dates have whole seconds."""
    monkeypatch.setattr(clients, "FIRST_PAUSE_S", 0.01)
    with serving(Endpoint(faults={"too_many_until": 1})) as endpoint:
        error, = complete(endpoint, tmp_path, request(), total_timeout_s=2.5)
    assert isinstance(error, ServerError) and error.status == 429 and 2 <= len(endpoint.arrivals) <= 6
    gaps_s = [later - earlier for (earlier, _), (later, _) in zip(endpoint.arrivals, endpoint.arrivals[1:], strict=False)]
    assert min(gaps_s) > 0.45


def test_retry_after_forms() -> None:
    assert [retry_after_s(text) for text in ("7", "0.5", "", "soon", "-3", "nan", "inf")] == [7, 0.5, 0, 0, 0, 0, 0]
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < retry_after_s(date) <= 30 and retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_limits_hold_at_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients share 12 requests in a window of 1.5 s: the server sees the thirteenth no earlier than a window after the start."""
    monkeypatch.setattr(budgets, "WINDOW_S", 1.5)
    with serving(Endpoint(faults={})) as endpoint:
        config = endpoint_config(endpoint.url, requests_per_minute=12)
        call = in_process(Budget({"test": config}))

        async def run() -> None:
            async with ChatClient(config, "test", call, str(tmp_path)) as a, ChatClient(config, "test", call, str(tmp_path)) as b:
                await asyncio.gather(*((a, b)[number % 2].complete(request(f"{number}?")) for number in range(40)))

        began_s = time.monotonic()
        asyncio.run(run())
    times = sorted(time_s - began_s for time_s, _ in endpoint.arrivals)
    assert len(times) == 40 and [times[12 * window] >= 1.5 * window for window in range(4)] == [True] * 4


def test_the_cap_stops_it_and_keeps_what_was_paid(tmp_path: Path) -> None:
    requests = [request(f"{number}?") for number in range(200)]
    with serving(Endpoint(faults={})) as endpoint:
        config = endpoint_config(endpoint.url, max_output_tokens=100)
        capped = Budget({"test": config}, max_cost=0.002)
        found = complete(endpoint, tmp_path, *requests, budget=capped, max_output_tokens=100)
        paid = [each for each in found if not isinstance(each, BaseException)]
        costs = capped.costs()["stage"]
        assert {type(each) for each in found} == {type(paid[0]), SpendingCapError} and 0.0015 < costs.cost <= 0.002
        assert len(paid) == costs.num_paid == sum(endpoint.delivered.values()) == len(list(tmp_path.rglob("*.json")))
        complete(endpoint, tmp_path, *requests, max_output_tokens=100)
    assert Counter(endpoint.delivered.values()) == {1: 200}


def test_an_endpoint_that_does_not_recover_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "FIRST_PAUSE_S", 0.01)
    for fault, message in (("broken", r"answered 50\d"), ("dropped", "broke off"), ("cut", "broke off"), ("slow", "within 0.2 s"),
                           ("garbled", "no chat completion")):
        with serving(Endpoint(faults={fault: 1}, slow_s=0.5)) as endpoint:
            error, = complete(endpoint, tmp_path, request(), total_timeout_s=0.5, request_timeout_s=0.2)
        assert isinstance(error, ServerError) and error.code == "endpoint_failed" and len(endpoint.arrivals) > 1
        with pytest.raises(ServerError, match=message):
            raise error
    error, = complete(endpoint, tmp_path, request(), total_timeout_s=0.1)
    assert error.code == "endpoint_failed" and "cannot be reached" in error.detail and not list(tmp_path.rglob("*.json"))


def test_a_wrong_key_is_not_tried_again_and_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong")
    with serving(Endpoint()) as endpoint:
        error, = complete(endpoint, tmp_path, request())
    assert (error.status, error.code, len(endpoint.arrivals)) == (401, "endpoint_refused", 0)
    assert "no such key: Bearer ***" in str(error) and "sk-wrong" not in str(error)
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ConfigError, match=f"{KEY_VARIABLE} holds no key.*on all nodes.*api_key_env=null"):
        complete(endpoint, tmp_path, request())


def test_a_cached_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    with serving(Endpoint(faults={})) as endpoint:
        complete(endpoint, tmp_path, request())
        file, = tmp_path.rglob("*.json")
        file.write_text("{}")
        error, = complete(endpoint, tmp_path, request())
    assert isinstance(error, StorageError) and str(file) in str(error) and sum(endpoint.delivered.values()) == 1
