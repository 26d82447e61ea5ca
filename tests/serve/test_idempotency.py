"""One key, one computation, one answer; another request under the same key is refused; failures are not remembered."""

import asyncio

import pytest

from serve import idempotency
from tests.serve.doubles import RuleModel
from tests.serve.test_access import GUARDED, bearer, session
from tests.serve.test_ingress import CONFIG, as_form, as_json, assert_problem, call, photo_bytes

PNG = photo_bytes()


def post(client, key: str | None = "k1", headers=None, **body):
    return client.post("/v1/segment", headers={**({"idempotency-key": key} if key else {}), **(headers or {})}, **body)


def test_the_same_request_again_gets_the_same_answer_and_is_not_computed():
    async def use(client):
        return [await post(client, **as_json(PNG)), await post(client, **as_json(PNG)), await post(client, "k2", **as_json(PNG)),
                await post(client, None, **as_json(PNG))]

    model = RuleModel()
    first, again, other, without = session(use, model, CONFIG)
    assert first.json() == again.json() and len(model.asks) == 3
    assert len({each.json()["id"] for each in (first, other, without)}) == 3
    assert [each.headers.get("idempotent-replayed") for each in (first, again, other)] == [None, "true", None]
    assert again.headers["x-request-id"] != first.headers["x-request-id"]


def test_requests_that_come_while_the_first_runs_wait_for_its_answer():
    class Slow(RuleModel):
        async def ask(self, ask):
            await asyncio.sleep(0.1)
            async for event in super().ask(ask):
                yield event

    async def use(client):
        return await asyncio.gather(*(post(client, **as_json(PNG, stream=True)) for _ in range(5)))

    model = Slow()
    answers = session(use, model, CONFIG)
    assert len({answer.text for answer in answers}) == 1 and "event: answer" in answers[0].text
    assert len(model.asks) == 1 and sum("idempotent-replayed" in answer.headers for answer in answers) == 4


@pytest.mark.parametrize("other", [as_json(PNG, "Another?"), as_json(photo_bytes(size=(41, 20))), as_form(PNG)])
def test_another_request_under_the_same_key_is_refused(other):
    async def use(client):
        return await post(client, **as_json(PNG)), await post(client, **other), await post(client, **as_json(PNG))

    model = RuleModel()
    first, refused, again = session(use, model, CONFIG)
    assert_problem(refused, 422, "idempotency_key_reused")
    assert first.json() == again.json() and len(model.asks) == 1


def test_the_same_key_of_two_people_is_two_keys():
    async def use(client):
        return [await post(client, headers=bearer(name), **as_json(PNG)) for name in ("alice", "bob")]

    assert len({answer.json()["id"] for answer in session(use, RuleModel(), GUARDED)}) == 2


@pytest.mark.parametrize("question, stream", [("poison", False), ("refuse", False), ("poison", True)])
def test_what_failed_is_tried_again(question, stream):
    async def use(client):
        return [(await post(client, **as_json(PNG, question, stream=stream))).headers.get("idempotent-replayed") for _ in range(2)]

    model = RuleModel()
    assert session(use, model, CONFIG) == [None, None] and len(model.asks) == 2


def test_a_client_that_left_leaves_the_key_free():
    async def use(client):
        left = asyncio.create_task(post(client, **as_json(PNG, "wait")))
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(post(client, **as_json(PNG, "wait")))
        await asyncio.sleep(0.1)
        left.cancel()
        await asyncio.sleep(0.3)
        num_asked = len(model.asks)
        waiting.cancel()
        return num_asked

    model = RuleModel()
    assert session(use, model, CONFIG) == 2


def test_answers_are_forgotten_by_age_and_by_size(monkeypatch):
    async def use(client):
        first = await post(client, **as_json(PNG))
        monkeypatch.setattr(idempotency, "MAX_BYTES", 10)
        await post(client, "k2", **as_json(PNG))
        monkeypatch.setattr(idempotency, "MAX_BYTES", 10**6)
        second = await post(client, **as_json(PNG))
        monkeypatch.setattr(idempotency, "KEPT_S", 0.0)
        return first, second, await post(client, **as_json(PNG))

    assert len({answer.json()["id"] for answer in session(use, RuleModel(), CONFIG)}) == 3


def test_odd_keys_and_large_bodies_get_their_problems():
    assert_problem(call("POST", "/v1/segment", headers={"idempotency-key": "x" * 129}, **as_json(PNG)), 422, "idempotency_key_invalid")
    assert_problem(call("POST", "/v1/segment", headers={"idempotency-key": "k"}, **as_form(b"x" * 300_000)), 413, "body_too_large")


def test_what_is_remembered_is_bounded_in_number_and_bytes(monkeypatch):
    """12,000 answers cost each further request 34 ms of the event loop, and took 232 MB where 4.8 were counted."""
    store = idempotency.Idempotency(None, CONFIG, clock=lambda: 0.0)
    monkeypatch.setattr(idempotency, "MAX_ANSWERS", 50)

    async def run():
        for number in range(200):
            mine = idempotency._Remembered(b"", 0.0)
            store._remember(("", str(number)), mine, [{"headers": [(b"a", b"b")]}, {"body": b"x" * number}])

    asyncio.run(run())
    assert [int(key) for _, key in store._answered] == list(range(150, 200))
    assert store._num_bytes == sum(each.num_bytes for each in store._answered.values()) > 50 * idempotency.ANSWER_OVERHEAD_BYTES


def test_a_request_that_runs_longer_than_answers_are_kept_is_still_computed_once(monkeypatch):
    monkeypatch.setattr(idempotency, "KEPT_S", 0.05)

    class Slow(RuleModel):
        async def ask(self, ask):
            await asyncio.sleep(0.3)
            async for event in super().ask(ask):
                yield event

    async def use(client):
        first = asyncio.create_task(post(client, **as_json(PNG)))
        await asyncio.sleep(0.15)
        return await asyncio.gather(first, post(client, **as_json(PNG)))

    model = Slow()
    first, second = session(use, model, CONFIG)
    assert first.json() == second.json() and len(model.asks) == 1
