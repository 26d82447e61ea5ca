"""The engine's thread: callers in threads and coroutines, leaving early, being late, and ends of every kind. Nobody ever waits for ever."""

import asyncio
import gc
import random
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from pixellm.errors import InputError, ModelError
from pixellm.inference.config import EngineConfig
from pixellm.inference.engine import Engine
from pixellm.inference.requests import EndEvent, Request, TokenEvent
from pixellm.testing import generate_alone
from tests.inference.models import MINI_VOCABULARY, mini_model, mini_photos

CONFIG = EngineConfig(num_slots=3, slot_tokens=64)
LONG = 50  # tokens: long enough to be met while it is written


@pytest.fixture(scope="module")
def model():
    return mini_model()


@pytest.fixture
def engine(model):
    with Engine(model, CONFIG) as engine:
        yield engine
        wait_until_idle(engine)


@pytest.fixture(scope="module")
def photos(model):
    return mini_photos(model, 5)


def request(photo, number=0, max_new_tokens=10, **options) -> Request:
    return Request(photo, [MINI_VOCABULARY] * 4 + [1 + number % 40, 2, 3], max_new_tokens, **options)


def wait_until_idle(engine: Engine) -> None:
    stepper, deadline_s = engine._loop.stepper, time.monotonic() + 20
    while not (stepper.is_idle and len(stepper._free_slots) == CONFIG.num_slots):
        assert time.monotonic() < deadline_s, "something still holds a slot"
        time.sleep(0.001)


def token_ids(events) -> list[int]:
    return [token for event in events if isinstance(event, TokenEvent) for token in event.token_ids]


async def collect(stream) -> list:
    return [event async for event in stream]


def test_threads_and_coroutines_get_their_own_answers(model, engine, photos):
    requests = [request(photos[number % 5], number, 3 + number % 9, client=str(number % 3)) for number in range(60)]
    expected = [generate_alone(model, each)[0].token_ids for each in requests]
    with ThreadPoolExecutor(8) as pool:
        assert [token_ids(events) for events in pool.map(lambda each: list(engine.submit(each)), requests)] == expected

    async def ask_all():
        return await asyncio.gather(*(collect(engine.submit(each)) for each in requests))

    assert [token_ids(events) for events in asyncio.run(ask_all())] == expected


def test_tokens_come_while_the_answer_is_written(engine, photos):
    stream = iter(engine.submit(request(photos[0], max_new_tokens=LONG)))
    assert isinstance(next(stream), TokenEvent)
    assert isinstance(list(stream)[-1], EndEvent)


def test_a_cancelled_request_ends_and_frees_its_slot(engine, photos):
    streams = [engine.submit(request(photos[0], number, LONG)) for number in range(8)]
    for stream in streams:
        stream.cancel()
    ends = [list(stream)[-1] for stream in streams]
    assert {end.reason for end in ends} <= {"cancelled", "length"} and ends[-1].reason == "cancelled"
    streams[0].cancel()
    assert list(engine.submit(request(photos[0], max_new_tokens=2)))[-1].reason == "length"


def test_an_expired_request_ends(engine, photos):
    late = engine.submit(request(photos[0], max_new_tokens=LONG, deadline_s=time.monotonic()))
    in_time = engine.submit(request(photos[0], max_new_tokens=2, deadline_s=time.monotonic() + 60))
    assert list(late) == [EndEvent("expired", 0)] and list(in_time)[-1].reason == "length"


def test_a_coroutine_that_is_cancelled_cancels_its_request(engine, photos):
    async def leave_early():
        stream = engine.submit(request(photos[0], max_new_tokens=LONG))
        task = asyncio.create_task(collect(stream))
        while not stream._events and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for _ in range(5):
        asyncio.run(leave_early())
    wait_until_idle(engine)


def test_a_loop_that_is_closed_does_not_harm_the_engine(engine, photos):
    loop = asyncio.new_event_loop()
    stream = engine.submit(request(photos[0], max_new_tokens=LONG))
    events = stream.__aiter__()
    loop.run_until_complete(events.__anext__())
    loop.close()
    wait_until_idle(engine)
    assert list(engine.submit(request(photos[0], max_new_tokens=2)))[-1].reason == "length"


def test_a_bad_request_is_refused_at_once(engine, photos):
    with pytest.raises(InputError, match="exceed the model's 64 positions"):
        engine.submit(request(photos[0], max_new_tokens=64))


def test_closing_ends_what_is_under_way(model, photos):
    engine = Engine(model, CONFIG)
    streams = [engine.submit(request(photos[number % 5], number, LONG)) for number in range(20)]
    engine.close()
    engine.close()
    assert {list(stream)[-1].reason for stream in streams} <= {"cancelled", "length"}
    assert list(streams[-1]) == [], "events come once"
    with pytest.raises(ModelError, match="closed"):
        engine.submit(request(photos[0]))


def test_an_engine_that_nobody_holds_ends_its_thread(model):
    engine = Engine(model, CONFIG)
    thread, gone = engine._loop.thread, weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_mistake_in_a_step_is_everybodys_error_and_not_the_engines_end(engine, photos, monkeypatch):
    stepper = engine._loop.stepper
    with monkeypatch.context() as patch:
        patch.setattr(stepper, "_choose_rows", lambda: 1 / 0)
        ends = [list(engine.submit(request(photos[0], number)))[-1] for number in range(3)]
        wait_until_idle(engine)
    assert all(end.reason == "error" and isinstance(end.error, ZeroDivisionError) for end in ends)
    assert list(engine.submit(request(photos[0], max_new_tokens=2)))[-1].reason == "length"


def test_a_request_that_cannot_be_added_ends_alone(model, engine, photos, monkeypatch):
    stepper, first = engine._loop.stepper, request(photos[0], 0, LONG)
    beside = engine.submit(first)
    add, refused = stepper.add, request(photos[0], 1)

    def add_others(running):
        if running.request is refused:
            raise ZeroDivisionError
        add(running)

    monkeypatch.setattr(stepper, "add", add_others)
    (end,) = engine.submit(refused)
    assert end.reason == "error" and isinstance(end.error, ZeroDivisionError)
    assert token_ids(beside) == generate_alone(model, first)[0].token_ids
    assert list(engine.submit(request(photos[0], max_new_tokens=2)))[-1].reason == "length"


def test_a_storm_of_callers_that_come_and_go(model, engine, photos):
    """Threads that submit, read a little, cancel or stay: each stream ends, and what stays is right."""
    requests = [request(photos[number % 5], number, 12) for number in range(10)]
    expected = [generate_alone(model, each)[0].token_ids for each in requests]
    wrong = []

    def call(seed):
        rng = random.Random(seed)
        for _ in range(20):
            number = rng.randrange(10)
            stream = engine.submit(requests[number])
            if rng.random() < 0.3:
                time.sleep(rng.random() * 0.01)
                stream.cancel()
            events = list(stream)
            found = token_ids(events)
            if found != expected[number][:len(found)] or (events[-1].reason == "length" and found != expected[number]):
                wrong.append((number, found))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not wrong
