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


def test_a_head_that_was_looked_at_stays_it():
    queue = FairQueue()
    queue.push("small", "b", 1)
    queue.pop()
    queue.push("x", "x", 50)
    queue.push("b", "b", 1)
    queue.pop()
    queue.push("x again", "x", 1000)
    queue.push("b again", "b", 1)
    while queue.head() != "x again":
        queue.pop()
    queue.push("new", "new", 1)
    assert queue.head() == "x again" and len(queue) == 2
    assert queue.pop() == "x again" and queue.pop() == "new" and not len(queue)


def test_nobody_waits_for_ever_behind_clients_that_are_always_new():
    """Each step brings a small item of a client that was never there and serves one. The large client, whose second item starts after its
    first has ended, is served after as many small ones as its first cost, twice over since each time two clients wait."""
    queue = FairQueue()
    queue.push("large", "large", 100)
    queue.push("large again", "large", 100)
    served = []
    for number in range(1000):
        queue.push("small", f"new {number}", 1)
        served.append(queue.pop())
        if served[-1] == "large again":
            break
        assert len(queue._client_end) < 10
    assert served[-1] == "large again" and 50 <= len(served) <= 201


def test_a_removed_item_is_not_paid_for():
    queue = FairQueue()
    queue.push("running", "a", 10)
    queue.pop()
    for number in range(100):
        queue.push(("a", number), "a", 10)
    queue.push("b", "b", 10)
    queue.push("b again", "b", 10)
    assert len(queue.remove(lambda item: item[0] == "a" and item[1] < 99)) == 99
    order = drain(queue)
    assert order.index(("a", 99)) <= 1, "as if the 99 had never been there"
    queue.push("other", "b", 1)
    queue.push("gone", "a", 1000)
    queue.remove(lambda item: item == "gone")
    queue.push("a", "a", 1)
    queue.push("other again", "b", 1)
    assert drain(queue) == ["other", "a", "other again"]


def test_clients_whose_items_were_removed_are_forgotten():
    queue = FairQueue()
    queue.push("stays", "stays", 10)
    assert queue.head() == "stays"
    for number in range(100):
        queue.push(number, str(number), 10)
        assert queue.remove(lambda item: item != "stays") == [number]
    assert list(queue._client_end) == ["stays"] and queue.head() == "stays"
    assert queue.remove(lambda _: True) == ["stays"]
    assert queue.head() is None and len(queue) == 0 and not queue._client_end
