"""A hang is found and named: real threads, processes and torch's store."""

import threading
import time
from datetime import timedelta

import torch
from torch.distributed import HashStore

from pixellm.train import watchdog as module
from pixellm.train.watchdog import EXIT_CODE, Standstill, Watchdog, describe


def test_it_is_quiet_while_steps_come(monkeypatch):
    ended = []
    watchdog = Watchdog(0, 1, 0.5, None, ended.append, end=ended.append)
    for step in range(20):
        watchdog.beat(step)
        time.sleep(0.05)
    watchdog.close()
    watchdog._thread.join()
    assert not ended


def test_two_workers_say_who_hangs_and_who_waits(monkeypatch, capfd):
    """One sleeps in a function of its own, as a reader that gets no data does; the other waits in a collective."""
    monkeypatch.setattr(module, "ANSWER_TIMEOUT_S", 10.0)
    monkeypatch.setattr(module, "COLLECTIVES", ("/torch/",))  # a store's `wait` stands for a collective here
    store, reports, ended, over = HashStore(), {}, {}, threading.Event()

    def work(rank, stand_still):
        watchdog = Watchdog(rank, 2, 0.3, store, lambda text: reports.setdefault(rank, text), end=lambda code: ended.setdefault(rank, code))
        watchdog.beat(7)
        stand_still()
        watchdog._thread.join()

    def read_data():
        over.wait(60)

    def all_reduce():
        torch.utils._pytree.tree_map(lambda _: over.wait(60), [1])

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate((all_reduce, read_data))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(ended) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    assert ended == {0: EXIT_CODE, 1: EXIT_CODE}
    assert reports[0] == reports[1]
    assert "rank 1 hangs at step 7 in wait (" in reports[0] and "rank 0 waits for the others at step 7 in" in reports[0]
    assert "in read_data" in capfd.readouterr().err, "the whole stack is on standard error"


def test_a_worker_that_does_not_answer_is_named():
    text = describe([Standstill(0, 3, "all_reduce (x:1), called by optimiser_step (y:2)", True)], 3, 60)
    assert "rank 1 does not answer" in text and "rank 2 does not answer" in text and "rank 0 waits" in text
    store = HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    watchdog = Watchdog(1, 2, 1000, store, print)
    watchdog.close()
    started = time.monotonic()
    assert len(watchdog._ask(Standstill(1, 1, "x", False))) == 1 and time.monotonic() - started < 60
