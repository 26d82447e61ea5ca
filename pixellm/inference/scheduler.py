"""Who is next: requests of different clients take turns by what they cost, those of one client in order. Knows no model.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): a request starts, in virtual time, when its client's previous one ends or at the
present, whichever is later, and ends `cost` after that; the smallest start is next. Only the head may leave the queue, so a request that
needs much waits for room at the front and is not overtaken.
"""

import heapq
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class _Entry(NamedTuple):
    start: float
    number: int  # of arrival: decides between equal starts, so that items are never compared
    item: object


class FairQueue(Generic[Item]):
    """A queue of items with a client and a cost each."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._client_end: dict[str, float] = {}
        self._now, self._num_pushed = 0.0, 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: Item, client: str, cost: float) -> None:
        """`cost` > 0, in any unit that is the same for all."""
        start = max(self._now, self._client_end.get(client, 0.0))
        self._client_end[client] = start + cost
        heapq.heappush(self._heap, _Entry(start, self._num_pushed, item))
        self._num_pushed += 1

    def head(self) -> Item | None:
        """The next item, which stays; None when the queue is empty."""
        return self._heap[0].item if self._heap else None  # type: ignore[return-value]

    def pop(self) -> Item:
        """Takes the next item out."""
        entry = heapq.heappop(self._heap)
        self._now = entry.start
        if not self._heap:  # nobody waits, so nobody is owed a turn: forget the clients
            self._client_end.clear()
        return entry.item  # type: ignore[return-value]

    def remove(self, is_over: Callable[[Item], bool]) -> list[Item]:
        """Takes out and returns those for which `is_over`."""
        gone: list[_Entry] = []
        kept: list[_Entry] = []
        for entry in self._heap:
            (gone if is_over(entry.item) else kept).append(entry)  # type: ignore[arg-type]
        if gone:
            heapq.heapify(kept)
            self._heap = kept
        return [entry.item for entry in gone]  # type: ignore[misc]
