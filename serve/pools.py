"""Threads for the blocking work of a request, a pool for each kind: what is slow in one does not hold up the others, nor the event loop.

What enters a pool is bounded before (bytes, items, pixels), so that each piece ends by itself; one that takes longer than its time is
answered with 503, and keeps its thread until it ends.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from serve.problems import ApiError

T = TypeVar("T")


class Pool:
    """`num_threads` threads; `timeout_s` counts from when the work is handed over, waiting for a thread included."""

    def __init__(self, name: str, num_threads: int, timeout_s: float):
        self._threads, self._timeout_s, self._name = ThreadPoolExecutor(num_threads, thread_name_prefix=name), timeout_s, name
        self._num_threads = num_threads
        self._free: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` in a thread. Raises what it raises, and ApiError `overloaded` when its time is over.

        It is handed over when a thread is free: a request that leaves before keeps nothing in a queue.
        """
        loop = asyncio.get_running_loop()
        free = self._free.setdefault(loop, asyncio.Semaphore(self._num_threads))

        def end(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(free.release)

        try:
            async with asyncio.timeout(self._timeout_s):
                await free.acquire()
                work = self._threads.submit(function, *arguments)
                work.add_done_callback(end)  # of the thread, which a request that leaves does not end
                return await asyncio.wrap_future(work)
        except TimeoutError:
            detail = f"The server had no time for {self._name} within {self._timeout_s:g} s; try again in a moment."
            raise ApiError(503, "overloaded", detail, headers={"retry-after": "3"}) from None


PARSING = Pool("parsing", 4, 30)  # JSON and base64 of the largest body take 0.1 s
DECODING = Pool("decoding", 4, 60)  # the costliest photo within the limits takes 4 s
FETCHING = Pool("fetching", 32, 120)  # waits for other servers, for as long as the deployment's fetch.timeout_s
