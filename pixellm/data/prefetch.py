"""A thread that reads ahead of whoever consumes."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

CLOSE_TIMEOUT_S = 5.0

T = TypeVar("T")


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread of its own, `depth` items ahead. An error there is raised here, in its place."""

    def __init__(self, items: Iterable[T], depth: int):
        self._queue: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            is_item, value = self._queue.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value

    def close(self) -> None:
        """Stop reading ahead."""
        self._stopped.set()
        self._thread.join(timeout=CLOSE_TIMEOUT_S)

    def _fill(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put((True, item)):
                    return
            self._put((False, None))
        except BaseException as error:  # handed to the consumer
            self._put((False, error))

    def _put(self, entry: tuple[bool, Any]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
