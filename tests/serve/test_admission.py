"""No place: the answer comes at once, before the body does, and places come free again."""

import asyncio

import httpx
import pytest

from serve.admission import Admission
from serve.config import AppConfig
from serve.ingress import build_api
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
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
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
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in range(40):
                assert (await client.post("/v1/segment", **as_photo(failing))).status_code in (415, 422)
            assert (await client.post("/v1/segment", **as_photo(photo_bytes()))).status_code == 200

    asyncio.run(run())
