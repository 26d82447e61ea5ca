"""budget.py: limits per minute with a clock of the test's own, and the spending cap."""

import random

import pytest

from pixellm.curation.budget import ASK_AGAIN_S, WINDOW_S, Budget, RateWindow
from pixellm.curation.config import EndpointConfig


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def config(**changes) -> EndpointConfig:
    return EndpointConfig(**{"url": "http://x/v1", "model": "m", "max_output_tokens": 100, "price_per_million_input": 1e4,
                             "price_per_million_output": 2e4, **changes})


def most_in_a_window(starts: list[tuple[float, int]]) -> tuple[int, int]:
    windows = [[tokens for start_s, tokens in starts if begin_s <= start_s < begin_s + WINDOW_S] for begin_s, _ in starts]
    return max(map(len, windows)), max(map(sum, windows))


@pytest.mark.parametrize(("max_requests", "max_tokens"), [(7, None), (None, 1000), (10, 700), (1, None)])
def test_no_minute_holds_more_than_is_allowed(max_requests, max_tokens):
    window, rng, now_s, starts = RateWindow(max_requests, max_tokens), random.Random(3), 0.0, []
    for _ in range(200):
        now_s += rng.expovariate(1 / 3)
        tokens = rng.randint(1, 300)
        starts.append((window.book(now_s, tokens).start_s, tokens))
        assert starts[-1][0] >= now_s
    assert [start_s for start_s, _ in starts] == sorted(start_s for start_s, _ in starts), "first come, first served"
    requests, tokens = most_in_a_window(starts)
    assert requests <= (max_requests or 200) and tokens <= (max_tokens or 60_000)
    assert requests == max_requests or tokens > 0.7 * (max_tokens or 0), "and the limit is used"


def test_what_a_request_did_not_need_is_given_back():
    window = RateWindow(None, 100)
    first = window.book(0, 90)
    window.correct(first, 10)
    assert window.book(1, 90).start_s == 1 and window.book(2, 10).start_s == WINDOW_S
    assert window.book(500, 1000).start_s == 500, "a request above the limit goes alone"
    assert window.book(501, 1).start_s == 500 + WINDOW_S


def test_a_pause_that_the_endpoint_wishes_holds_for_all():
    clock = Clock()
    budget = Budget({"a": config(), "b": config()}, clock=clock)
    ticket = budget.reserve("a", "x", 10).ticket
    budget.settle(ticket, "refused", pause_s=7)
    assert (budget.reserve("a", "y", 10).wait_s, budget.reserve("b", "y", 10).wait_s) == (7, 0)
    clock.now_s += 8
    assert budget.reserve("a", "y", 10).wait_s == 0


def test_the_cap_counts_what_is_out_and_what_may_have_been_billed():
    clock = Clock()
    budget = Budget({"a": config()}, max_cost=10, clock=clock)  # one request: 100 tokens in, at most 100 out: 1 + 2
    tickets = [budget.reserve("a", "x", 100).ticket for _ in range(3)]
    assert None not in tickets
    waiting = budget.reserve("a", "x", 100)
    assert (waiting.ticket, waiting.wait_s, waiting.refusal) == (None, ASK_AGAIN_S, "")
    budget.settle(tickets[0], "paid", 100, 10)  # 1.2 of 3
    assert budget.reserve("a", "x", 80).ticket is not None
    budget.settle(tickets[1], "refused")
    budget.settle(tickets[2], "unsure")
    clock.now_s += 1e6  # the fourth was never settled: its worker is gone
    assert budget.reserve("a", "x", 310).refusal.startswith("7 is spent, the next request to m can cost 5.1, and max_cost is 10")
    costs = budget.costs()["x"]
    assert (costs.num_paid, costs.num_refused, costs.num_unsure, costs.cost, costs.unsure_cost) == (1, 1, 2, 1.2, pytest.approx(5.8))
    budget.settle(tickets[0], "paid", 100, 10)
    assert budget.costs()["x"] == costs, "what is settled stays so"
