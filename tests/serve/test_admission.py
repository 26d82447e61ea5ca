"""No place: the answer comes at once, before the body does, and places come free again."""

import asyncio

import httpx
import pytest

from serve.admission import Admission, PhotoPlace, PixelBudget
from serve.config import AppConfig
from serve.ingress import build_api
from serve.keys import ApiKey, hash_key
from serve.problems import ApiError
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import as_photo, assert_problem, photo_bytes

CONFIG = AppConfig(model="models/test", engine={"num_slots": 1}, max_ongoing_requests=3)


def test_one_more_than_the_places_is_refused_before_its_body_comes():
    model = RuleModel()
    num_places = Admission(None, CONFIG).max_requests

    async def never():
        yield b""
        raise AssertionError("the body was read")

    async def run() -> None:
        transport = httpx.ASGITransport(build_api(CONFIG, model))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            waiting = [asyncio.create_task(client.post("/v1/segment", **as_photo(photo_bytes(), "wait"))) for _ in range(num_places)]
            while len(model.asks) < num_places:
                await asyncio.sleep(0.01)
            refused = await client.post("/v1/segment", content=never(), headers={"content-type": "image/png"})
            assert_problem(refused, 503, "overloaded")
            assert int(refused.headers["retry-after"]) > 0
            assert (await client.get("/livez")).status_code == 200
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert (await client.post("/v1/segment", **as_photo(photo_bytes()))).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("failing", [b"", b"not a photo"])
def test_a_request_that_fails_gives_its_place_back(failing):
    async def run() -> None:
        transport = httpx.ASGITransport(build_api(CONFIG, RuleModel()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for _ in range(40):
                assert (await client.post("/v1/segment", **as_photo(failing))).status_code in (415, 422)
            assert (await client.post("/v1/segment", **as_photo(photo_bytes()))).status_code == 200

    asyncio.run(run())


def test_places_are_shared_by_those_that_ask():
    """With one key at 120 clients another got 1 answer of 26."""
    keys = tuple(ApiKey(name=name, sha256=hash_key(name)) for name in ("flood", "other", "third"))
    config = AppConfig(model="models/test", engine={"num_slots": 1}, max_ongoing_requests=16, api_keys=keys)
    now_s, admitted, release = [0.0], [], asyncio.Event()

    async def app(scope, receive, send):
        admitted.append(scope["state"]["client"])
        await release.wait()

    async def run() -> None:
        admission = Admission(app, config, clock=lambda: now_s[0])

        async def ask(client: str) -> bool:
            before = len(admitted)
            running.append(asyncio.create_task(admission(
                {"type": "http", "method": "POST", "state": {"client": client, "request_id": "r"}}, None, sent.append_async)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            return len(admitted) > before

        class Sent(list):
            async def append_async(self, message):
                self.append(message)

        running, sent = [], Sent()
        assert sum([await ask("flood") for _ in range(40)]) == 12, "a quarter stays free for others"
        assert sum([await ask("other") for _ in range(40)]) == 4, "which have it at once"
        assert not await ask("flood")
        release.set()
        await asyncio.gather(*running)
        release.clear()
        assert sum([await ask("flood") for _ in range(40)]) == 8, "then each has half"
        assert sum([await ask("other") for _ in range(40)]) == 8
        release.set()
        await asyncio.gather(*running)
        release.clear()
        now_s[0] = 60.0
        assert sum([await ask("flood") for _ in range(40)]) == 12, "and who has not asked for a while gives its part back"
        release.set()
        await asyncio.gather(*running)

    asyncio.run(run())


def test_photos_in_flight_are_bounded_and_one_alone_always_has_its_place():
    budget = PixelBudget(100)
    first, second = PhotoPlace(budget), PhotoPlace(budget)
    first.enter(400)
    with pytest.raises(ApiError):
        second.enter(1)
    first.leave()
    second.enter(60)
    second.enter(50)  # the next photo of the same request, one after the other
    first.enter(40)
    with pytest.raises(ApiError):
        first.enter(41)
    first.leave()
    second.leave()
    assert budget.num_pixels == 0
