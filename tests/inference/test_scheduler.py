"""Who is next: in order for one client, in turns for several, by cost; nobody waits for ever."""

import random

from pixellm.inference.scheduler import FairQueue


def drain(queue):
    return [queue.pop() for _ in range(len(queue))]


def test_one_client_is_served_in_order():
    queue = FairQueue()
    for item in range(20):
        queue.push(item, "a", 1 + item % 3)
    assert drain(queue) == list(range(20))


def test_a_client_with_one_request_does_not_wait_behind_a_hundred():
    queue = FairQueue()
    for item in range(100):
        queue.push(("many", item), "many", 10)
    queue.push(("one", 0), "one", 10)
    assert drain(queue).index(("one", 0)) <= 1


def test_turns_are_by_cost():
    queue = FairQueue()
    for _ in range(30):
        queue.push("large", "large", 30)
        queue.push("small", "small", 10)
    first = drain(queue)[:20]
    assert abs(first.count("small") - 15) <= 1, "three small ones for each large one"


def test_a_large_request_is_not_overtaken_for_ever():
    """While small ones keep coming from others, the large one reaches the head after as much as its client is owed, and stays there."""
    queue = FairQueue()
    queue.push("small", "b", 1)
    queue.push("large", "a", 1000)
    assert queue.pop() == "small"
    for _ in range(50):
        queue.push("small", "b", 1)
    assert queue.head() == "large" and queue.head() == "large"


def test_a_client_that_was_away_is_not_owed_the_past():
    queue = FairQueue()
    for _ in range(50):
        queue.push("a", "a", 10)
    for _ in range(40):
        queue.pop()
    for _ in range(10):
        queue.push("b", "b", 10)
    assert drain(queue)[:6].count("b") <= 4


def test_removed_items_are_gone_and_the_order_stays():
    queue = FairQueue()
    for item in range(10):
        queue.push(item, "ab"[item % 2], 1)
    order = drain(queue)
    for item in range(10):
        queue.push(item, "ab"[item % 2], 1)
    assert sorted(queue.remove(lambda item: item % 3 == 0)) == [0, 3, 6, 9]
    assert drain(queue) == [item for item in order if item % 3] and queue.head() is None


def test_every_item_comes_out_once_and_clients_are_forgotten():
    rng, queue, seen = random.Random(0), FairQueue(), []
    for item in range(500):
        queue.push(item, str(rng.randrange(50)), rng.randint(1, 100))
        if rng.random() < 0.5:
            seen.append(queue.pop())
    seen += drain(queue)
    assert sorted(seen) == list(range(500)) and not queue._client_end
