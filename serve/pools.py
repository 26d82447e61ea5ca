"""Threads for the blocking work of a request, a pool for each kind: what is slow in one does not hold up the others, nor the event loop.

What enters a pool is bounded before (bytes, items, pixels), so that each piece ends by itself; one that takes longer than its time is
answered with 503, and keeps its thread until it ends.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from serve.problems import ApiError

T = TypeVar("T")


class Pool:
    """`num_threads` threads; `timeout_s` counts from when the work is handed over, waiting for a thread included."""

    def __init__(self, name: str, num_threads: int, timeout_s: float):
        self._threads, self._timeout_s, self._name = ThreadPoolExecutor(num_threads, thread_name_prefix=name), timeout_s, name

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)` in a thread. Raises what it raises, and ApiError `overloaded` when its time is over."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
        try:
            return await asyncio.wait_for(work, self._timeout_s)  # cancels what has not begun
        except TimeoutError:
            detail = f"The server had no time for {self._name} within {self._timeout_s:g} s; try again in a moment."
            raise ApiError(503, "overloaded", detail, headers={"retry-after": "3"}) from None


PARSING = Pool("parsing", 4, 30)  # JSON and base64 of the largest body take 0.1 s
DECODING = Pool("decoding", 4, 60)  # the costliest photo within the limits takes 4 s
FETCHING = Pool("fetching", 32, 120)  # waits for other servers, for as long as the deployment's fetch.timeout_s
