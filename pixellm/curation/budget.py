"""How fast and for how much all workers together may ask: limits per minute, a spending cap, and the count of what was paid.

Knows neither HTTP nor Ray: `in_process` gives a `Budget` to clients of this process, `of_actor` one that lives in a Ray actor.
"""

import itertools
import math
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pixellm.curation.config import EndpointConfig
from pixellm.settings import StrictModel

WINDOW_S = 61.0  # a minute, and what one request may take longer on its way than another
ASK_AGAIN_S = 0.2
EXPIRY_MARGIN_S = 60.0  # beyond its time limit a request that nobody settled is taken for lost with its worker

BudgetCall = Callable[..., Awaitable[Any]]  # `await call("reserve", …)`: a method of Budget and its arguments


def in_process(budget: "Budget") -> BudgetCall:
    """Calls of a budget that lives here."""
    async def call(method: str, *arguments: Any) -> Any:
        return getattr(budget, method)(*arguments)
    return call


def of_actor(actor: Any) -> BudgetCall:
    """Calls of a budget that is a Ray actor."""
    async def call(method: str, *arguments: Any) -> Any:
        return await getattr(actor, method).remote(*arguments)
    return call


@dataclass
class _Booking:
    start_s: float
    num_tokens: int


class RateWindow:
    """No `WINDOW_S` seconds hold more than `max_requests` requests or `max_tokens` tokens; a request larger than that goes alone."""

    def __init__(self, max_requests: float | None, max_tokens: float | None):
        self._max_requests, self._max_tokens = max_requests or math.inf, max_tokens or math.inf
        self._booked: deque[_Booking] = deque()
        self._num_tokens = 0
        self._not_before_s = -math.inf

    def book(self, now_s: float, num_tokens: int) -> _Booking:
        """The earliest start for a request, not before those booked earlier."""
        while self._booked and self._booked[0].start_s <= now_s - WINDOW_S:
            self._num_tokens -= self._booked.popleft().num_tokens
        start_s = max(now_s, self._not_before_s, self._booked[-1].start_s if self._booked else now_s)
        requests, tokens = len(self._booked) + 1, self._num_tokens + num_tokens
        for earlier in self._booked:
            if requests <= self._max_requests and tokens <= self._max_tokens:
                break
            start_s = max(start_s, earlier.start_s + WINDOW_S)
            requests, tokens = requests - 1, tokens - earlier.num_tokens
        booking = _Booking(start_s, num_tokens)
        self._booked.append(booking)
        self._num_tokens += num_tokens
        return booking

    def correct(self, booking: _Booking, num_tokens: int) -> None:
        """The request took so many tokens, not those that were booked."""
        if self._booked and booking.start_s >= self._booked[0].start_s:
            self._num_tokens += num_tokens - booking.num_tokens
        booking.num_tokens = num_tokens

    def pause(self, until_s: float) -> None:
        """Nothing that is booked from now on starts earlier."""
        self._not_before_s = max(self._not_before_s, until_s)


class StageCosts(StrictModel):
    """Of one stage. `num_paid`: answers that arrived; `num_unsure`: attempts whose answer was lost and may have been billed all the same,
    with `unsure_cost` as the estimate; `num_refused`: attempts that the endpoint turned down or that did not reach it."""

    num_paid: int = 0
    num_cached: int = 0
    num_refused: int = 0
    num_unsure: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0
    unsure_cost: float = 0


@dataclass(frozen=True)
class Grant:
    """`ticket` None: ask again after `wait_s`. Else send after `wait_s`, and settle. `refusal`: why nothing may be sent any more."""

    ticket: int | None
    wait_s: float
    refusal: str = ""


@dataclass(frozen=True)
class _Reservation:
    endpoint: str
    stage: str
    cost: float
    booking: _Booking
    expires_s: float


class Budget:
    """The one place that lets requests go. A request reserves the most that it can cost and settles what it did cost."""

    def __init__(self, endpoints: Mapping[str, EndpointConfig], max_cost: float | None = None, clock: Callable[[], float] = time.monotonic):
        self._endpoints, self._max_cost, self._clock = dict(endpoints), math.inf if max_cost is None else max_cost, clock
        self._windows = {name: RateWindow(each.requests_per_minute, each.tokens_per_minute) for name, each in endpoints.items()}
        self._tickets = itertools.count()
        self._reserved: dict[int, _Reservation] = {}
        self._stages: dict[str, dict[str, float]] = defaultdict(lambda: StageCosts().model_dump())
        self._spent = 0.0  # with what may have been billed
        self._num_done = 0

    def reserve(self, endpoint: str, stage: str, input_tokens: int) -> Grant:
        """Ask for one attempt; `input_tokens` is an estimate."""
        config, now_s = self._endpoints[endpoint], self._clock()
        for ticket, each in list(self._reserved.items()):
            if each.expires_s < now_s:
                self.settle(ticket, "unsure")
        cost = config.cost(input_tokens, config.max_output_tokens)
        if self._spent + cost > self._max_cost:
            return Grant(None, 0, f"{self._spent:.4g} is spent, the next request to {config.model} can cost {cost:.4g}, "
                                  f"and max_cost is {self._max_cost:g}")
        if self._spent + cost + sum(each.cost for each in self._reserved.values()) > self._max_cost:
            return Grant(None, ASK_AGAIN_S)  # those that are out will cost less than they reserved
        booking = self._windows[endpoint].book(now_s, input_tokens + config.max_output_tokens)
        ticket = next(self._tickets)
        expires_s = booking.start_s + config.request_timeout_s + EXPIRY_MARGIN_S
        self._reserved[ticket] = _Reservation(endpoint, stage, cost, booking, expires_s)
        return Grant(ticket, booking.start_s - now_s)

    def settle(self, ticket: int, outcome: Literal["paid", "refused", "unsure"], input_tokens: int = 0, output_tokens: int = 0,
               pause_s: float = 0) -> None:
        """Say what became of an attempt. `pause_s`: the endpoint wishes that nobody asks it for so long. What is settled stays so."""
        reservation = self._reserved.pop(ticket, None)
        if reservation is None:
            return
        config, stage = self._endpoints[reservation.endpoint], self._stages[reservation.stage]
        window = self._windows[reservation.endpoint]
        stage[f"num_{outcome}"] += 1
        if outcome == "paid":
            window.correct(reservation.booking, input_tokens + output_tokens)
            cost = config.cost(input_tokens, output_tokens)
            stage["input_tokens"] += input_tokens
            stage["output_tokens"] += output_tokens
            stage["cost"] += cost
            self._spent += cost
        elif outcome == "unsure":
            stage["unsure_cost"] += reservation.cost
            self._spent += reservation.cost
        if pause_s:
            window.pause(self._clock() + pause_s)

    def count_cached(self, stage: str) -> None:
        """An answer of `stage` came from the cache."""
        self._stages[stage]["num_cached"] += 1

    def count_done(self, num_done: int) -> None:
        """So many photos more are done."""
        self._num_done += num_done

    def num_done(self) -> int:
        """Photos that are done."""
        return self._num_done

    def costs(self) -> dict[str, StageCosts]:
        """So far, by stage."""
        return {stage: StageCosts.model_validate(counts) for stage, counts in sorted(self._stages.items())}
