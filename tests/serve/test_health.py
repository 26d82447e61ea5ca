"""Alive is not ready: only an answer of the model is proof."""

import asyncio

import httpx
import pytest

from pixellm.errors import ModelError
from serve import health
from serve.ingress import build_api
from serve.problems import ApiError
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import CONFIG, Raising, as_form, assert_problem, call, photo_bytes


def session(use, model):
    """What `use(client)` gives, with a client whose requests all reach one API."""
    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_api(CONFIG, model)), base_url="http://localhost") as client:
            return await use(client)

    return asyncio.run(run())


@pytest.mark.parametrize("path", ["/livez", "/healthz"])
def test_the_process_is_alive_without_a_model(path):
    assert call("GET", path, Raising(ModelError("no"))).json() == {"status": "ok", "model": "test"}


def test_one_canary_is_proof_for_a_while(monkeypatch):
    async def use(client):
        first = await asyncio.gather(*(client.get("/readyz") for _ in range(3)))
        second = await client.get("/readyz")
        asked = len(model.asks)
        monkeypatch.setattr(health, "FRESH_S", 0.0)
        return [*first, second, await client.get("/readyz")], asked

    model = RuleModel()
    answers, asked = session(use, model)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert answers[0].json()["status"] == "ready" and 0 <= answers[3].json()["answered_s_ago"] <= health.FRESH_S + 10
    assert asked == 1 and [ask.options.client for ask in model.asks] == ["canary", "canary"]


def test_an_answer_to_somebody_is_proof_too():
    async def use(client):
        await client.post("/v1/segment", **as_form(photo_bytes()))
        return await client.get("/readyz")

    model = RuleModel()
    assert session(use, model).status_code == 200 and len(model.asks) == 1


@pytest.mark.parametrize("error", [ModelError("no"), ApiError(503, "overloaded", "Busy."), RuntimeError("secret")])
def test_a_model_that_does_not_answer_is_not_ready(error):
    response = call("GET", "/readyz", Raising(error))
    assert_problem(response, 503, "not_ready")
    assert "secret" not in response.text and response.headers["retry-after"] == "3"


def test_a_canary_that_takes_too_long(monkeypatch):
    class Silent(RuleModel):
        async def ask(self, ask):
            await asyncio.sleep(60)
            yield

    config = CONFIG.model_copy(update={"health_check_timeout_s": 0.05})
    assert_problem(call("GET", "/readyz", Silent(), config), 503, "not_ready")


def test_a_canary_outlives_the_probe_that_gave_up():
    class Slow(RuleModel):
        async def ask(self, ask):
            await asyncio.sleep(0.2)
            async for event in super().ask(ask):
                yield event

    async def use(client):
        probe = asyncio.create_task(client.get("/readyz"))
        await asyncio.sleep(0.05)
        probe.cancel()
        return await client.get("/readyz")

    model = Slow()
    assert session(use, model).status_code == 200 and len(model.asks) == 1
