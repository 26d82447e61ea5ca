"""Finds a hang and names it: which worker, at which step, in which call. Knows threads and a store of bytes, nothing of training.

A worker that hangs in native code cannot be interrupted, so the watchdog ends its process; Ray Train then starts the workers again.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Protocol

EXIT_CODE = 75
ANSWER_TIMEOUT_S = 5.0  # for the others' reports; they notice at about the same time
REPORT_TIMEOUT_S = 20.0
COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")


class Store(Protocol):
    """What the workers of a process group share: torch.distributed's Store."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


def shared_store() -> Store | None:
    """The one that the process group was formed over; None without a group."""
    from torch import distributed

    return distributed.distributed_c10d._get_default_store() if distributed.is_initialized() else None


@dataclass(frozen=True)
class Standstill:
    """Where a worker stands: `call` is its innermost one and the line of ours before it; `waits`: in a collective, for the others."""

    rank: int
    step: int
    call: str
    waits: bool


class Watchdog:
    """A thread that ends the process when `beat` was not called for `timeout_s`, after it told `report` and standard error why.

    `store` is None where there is nobody to ask. `end` ends the process.
    """

    def __init__(self, rank: int, num_workers: int, timeout_s: float, store: Store | None, report: Callable[[str], None],
                 end: Callable[[int], object] = os._exit):
        self.rank, self.num_workers, self.timeout_s, self.store, self.report, self.end = rank, num_workers, timeout_s, store, report, end
        self._watched = threading.get_ident()
        self._closed = threading.Event()
        self._last, self._step = time.monotonic(), 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int) -> None:
        """The watched thread, which made this object, begins `step`."""
        self._last, self._step = time.monotonic(), step

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(self.timeout_s / 4, 5.0)):
            if time.monotonic() - self._last > self.timeout_s:
                teller = threading.Thread(target=self._tell, daemon=True)  # storage or store may be what hangs
                teller.start()
                teller.join(REPORT_TIMEOUT_S)
                self.end(EXIT_CODE)
                return

    def _tell(self) -> None:
        mine = find_standstill(self.rank, self._step, self._watched)
        stack = "".join(traceback.format_stack(sys._current_frames()[self._watched]))
        sys.stderr.write(f"rank {self.rank} has not finished step {mine.step} in {self.timeout_s:g} s. It is here:\n{stack}")
        text = describe(self._ask(mine), self.num_workers, self.timeout_s)
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
        self.report(text)

    def _ask(self, mine: Standstill) -> list[Standstill]:
        """Of this worker, and of all others that answer. The first worker's process holds the store: it has to be the last to end."""
        if self.store is None:
            return [mine]
        found, deadline = [mine], time.monotonic() + ANSWER_TIMEOUT_S
        try:
            self.store.set(f"standstill/{self.rank}", json.dumps(asdict(mine)))
        except Exception:  # its holder is what hangs
            return found
        for rank in range(self.num_workers):
            if rank == self.rank:
                continue
            try:
                self.store.wait([f"standstill/{rank}"], timedelta(seconds=max(deadline - time.monotonic(), 0.1)))
                found.append(Standstill(**json.loads(self.store.get(f"standstill/{rank}"))))
            except Exception:
                continue  # it does not answer, which `describe` says
        if self.rank == 0:
            time.sleep(max(0.0, deadline - time.monotonic()))
        return found


def find_standstill(rank: int, step: int, thread_id: int) -> Standstill:
    """Where thread `thread_id` of this process is now."""
    frames = traceback.extract_stack(sys._current_frames()[thread_id])
    outer = next((frame for frame in reversed(frames) if "/pixellm/" in frame.filename), frames[0])
    names = [f"{frame.name} ({_shortened(frame.filename)}:{frame.lineno})" for frame in (frames[-1], outer)]
    waits = any(part in frame.filename for frame in frames for part in COLLECTIVES)
    return Standstill(rank, step, names[0] if names[0] == names[1] else f"{names[0]}, called by {names[1]}", waits)


def describe(found: list[Standstill], num_workers: int, timeout_s: float) -> str:
    """Who hangs, and who only waits for them."""
    silent = sorted(set(range(num_workers)) - {each.rank for each in found})
    hanging = [each for each in found if not each.waits]
    lines = [f"hang: no step in {timeout_s:g} s"]
    lines += [f"rank {rank} does not answer: its process is stopped, swapped out or gone" for rank in silent]
    lines += [f"rank {each.rank} hangs at step {each.step} in {each.call}" for each in sorted(hanging, key=lambda each: each.rank)]
    lines += [f"rank {each.rank} waits for the others at step {each.step} in {each.call}"
              for each in sorted(found, key=lambda each: each.rank) if each.waits]
    return "\n  ".join(lines)


def _shortened(filename: str) -> str:
    return "/".join(filename.split("/")[-3:])
