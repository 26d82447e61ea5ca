"""A line of progress every few seconds while items go by."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
INTERVAL_S = 5.0


def show_progress(
    items: Iterable[T], what: str, total: int | None, counts: Callable[[T], bool] = lambda item: True, interval_s: float = INTERVAL_S
) -> Iterator[T]:
    """Pass `items` on, and print number, rate and time left at most every `interval_s`. What `counts` says no to is not counted."""
    begun = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += counts(item)
        now = time.monotonic()
        if now - last >= interval_s:
            last = now
            print(progress_line(what, done, total, now - begun), flush=True)


@contextmanager
def watch_progress(what: str, total: int, num_done: Callable[[], int], interval_s: float = INTERVAL_S) -> Iterator[None]:
    """While the block runs, which does its work elsewhere, print number, rate and time left every `interval_s`."""
    begun, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(interval_s):
            print(progress_line(what, num_done(), total, time.monotonic() - begun), flush=True)

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=interval_s)


def progress_line(what: str, done: int, total: int | None, elapsed_s: float) -> str:
    """ "rows: 1,200 of 5,000, 240.0/s, about 16 s left"."""
    rate = done / max(elapsed_s, 1e-9)
    line = f"{what}: {done:,}" + (f" of {total:,}" if total else "") + f", {rate:,.1f}/s"
    return line + (f", about {max(total - done, 0) / rate:,.0f} s left" if total and done else "")
