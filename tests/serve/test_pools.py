"""Blocking work in threads of its kind: slow addresses hold up no photo, and what takes too long is told."""

import asyncio
import threading
import time

import httpx
import pytest

from serve import fetch
from serve.fetch_config import FetchConfig
from serve.ingress import build_api
from serve.pools import Pool
from serve.problems import ApiError
from tests.serve.doubles import RuleModel
from tests.serve.test_ingress import CONFIG, as_json, as_photo, photo_bytes


def test_slow_addresses_do_not_hold_up_photos(monkeypatch):
    release = threading.Event()

    def never(*_):
        assert release.wait(60)
        raise ApiError(422, "image_fetch", "too late")

    monkeypatch.setattr(fetch, "_fetch", never)

    async def run() -> tuple[int, list[int]]:
        api = build_api(CONFIG.model_copy(update={"fetch": FetchConfig(), "request_timeout_s": 60}), RuleModel())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://localhost", timeout=60) as client:
            slow = [asyncio.create_task(client.post("/v1/segment", **as_json("https://slow.example/a.png"))) for _ in range(20)]
            await asyncio.sleep(0.2)
            quick = await client.post("/v1/segment", **as_photo(photo_bytes()))
            assert not any(each.done() for each in slow)
            release.set()
            return quick.status_code, [each.status_code for each in await asyncio.gather(*slow)]

    assert asyncio.run(run()) == (200, [422] * 20)


def test_work_that_takes_longer_than_its_time_is_told_and_the_rest_of_the_queue_not_begun():
    pool, begun = Pool("testing", 1, 0.05), []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.3)

    async def run() -> list[BaseException | None]:
        return await asyncio.gather(*(pool.run(work, number) for number in range(3)), return_exceptions=True)

    errors = asyncio.run(run())
    assert [error.status for error in errors if isinstance(error, ApiError)] == [503] * 3
    time.sleep(0.4)
    assert begun == [0]


def test_what_the_work_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Pool("testing", 1, 5).run(lambda: 1 // 0))


def test_a_request_that_leaves_keeps_nothing_in_the_queue():
    pool, release = Pool("testing", 1, 60), threading.Event()

    async def run() -> int:
        busy = asyncio.create_task(pool.run(release.wait, 60))
        await asyncio.sleep(0.05)
        left = [asyncio.create_task(pool.run(len, b"x")) for _ in range(20)]
        await asyncio.sleep(0.05)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        waiting = pool._threads._work_queue.qsize()
        release.set()
        assert await busy and await pool.run(len, b"xy") == 2
        return waiting

    assert asyncio.run(run()) == 0
    assert asyncio.run(pool.run(len, b"xyz")) == 3, "in another loop too"
