"""Who is next: requests of different clients take turns by what they cost, those of one client in order. Knows no model.

Start-time fair queueing (Goyal, Vin and Cheng, 1996): a request starts, in virtual time, when its client's previous one ends or at the
present, whichever is later, and ends `cost` after that; the smallest start is next. The present moves on with each request that leaves, by
its cost shared among the clients that wait, as if all were served at once (Demers, Keshav and Shenker, 1989): with the present of the
former, clients that are always new would all start before one that has had something. Only the head may leave, and once it was looked at
nothing overtakes it, so a request that needs much room waits for it at the front.
"""

import heapq
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class _Entry(NamedTuple):
    start: float
    number: int  # of arrival: decides between equal starts, so that items are never compared
    item: object
    client: str
    cost: float
    arrival: float  # the present when it was pushed


class FairQueue(Generic[Item]):
    """A queue of items with a client and a cost each."""

    def __init__(self) -> None:
        self._head: _Entry | None = None  # that was looked at
        self._heap: list[_Entry] = []  # the others
        self._client_end: dict[str, float] = {}  # of clients whose last item ends after the present
        self._now, self._num_pushed = 0.0, 0

    def __len__(self) -> int:
        return len(self._heap) + (self._head is not None)

    @property
    def cost(self) -> float:
        """Of all items together."""
        return sum(entry.cost for entry in self._heap) + (self._head.cost if self._head else 0.0)

    def push(self, item: Item, client: str, cost: float) -> None:
        """`cost` > 0, in any unit that is the same for all."""
        start = max(self._now, self._client_end.get(client, 0.0))
        self._client_end[client] = start + cost
        heapq.heappush(self._heap, _Entry(start, self._num_pushed, item, client, cost, self._now))
        self._num_pushed += 1

    def head(self) -> Item | None:
        """The next item, which stays next until it is taken out; None when the queue is empty."""
        if self._head is None and self._heap:
            self._head = heapq.heappop(self._heap)
        return self._head.item if self._head else None  # type: ignore[return-value]

    def pop(self) -> Item:
        """Takes the next item out."""
        entry, self._head = self._head or heapq.heappop(self._heap), None
        num_clients = len({entry.client, *(each.client for each in self._heap)})
        self._now = max(self._now + entry.cost / num_clients, entry.start)
        self._forget_clients()
        return entry.item  # type: ignore[return-value]

    def remove(self, is_over: Callable[[Item], bool]) -> list[Item]:
        """Takes out and returns those for which `is_over`. Their clients' later items start as if they had never been there."""
        waiting = [*self._heap, *([self._head] if self._head else [])]
        gone = {entry.number: entry for entry in waiting if is_over(entry.item)}  # type: ignore[arg-type]
        if not gone:
            return []
        clients, kept = {entry.client for entry in gone.values()}, []
        ends: dict[str, float] = {}
        for entry in sorted(waiting, key=lambda entry: entry.number):
            if entry.client in clients:
                entry = entry._replace(start=max(entry.arrival, ends.get(entry.client, entry.start)))
                ends[entry.client] = entry.start + (0 if entry.number in gone else entry.cost)
            if entry.number not in gone:
                kept.append(entry)
        self._client_end |= ends
        if self._head:
            self._head = next((entry for entry in kept if entry.number == self._head.number), None)
        self._heap = [entry for entry in kept if entry is not self._head]
        heapq.heapify(self._heap)
        self._forget_clients()
        return [entry.item for entry in gone.values()]  # type: ignore[misc]

    def _forget_clients(self) -> None:
        """Those who would start at the present anyway; and all when nobody waits, since then nobody is owed a turn."""
        self._client_end = {client: end for client, end in self._client_end.items() if end > self._now} if len(self) else {}
