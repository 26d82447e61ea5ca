"""Timing that a shared and drifting machine cannot easily fool: everything that is compared runs in turns, in one process."""

import gc
import time
from collections.abc import Callable, Mapping

from jobs.benchmarks.result import Case


def time_interleaved(functions: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1) -> dict[str, Case]:
    """Seconds of each call, after `warmups` calls each: A B C, then C B A, and so on, so that drift meets all alike.

    A function that starts work on an accelerator has to wait for its end itself. The garbage collector is off while a call is timed.
    """
    for function in functions.values():
        for _ in range(warmups):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    was_enabled = gc.isenabled()
    try:
        for round_index in range(repeats):
            for name in list(functions) if round_index % 2 == 0 else reversed(list(functions)):
                gc.collect()
                gc.disable()
                started = time.perf_counter()
                functions[name]()
                seconds[name].append(time.perf_counter() - started)
    finally:
        if was_enabled:
            gc.enable()
    return {name: Case(name, "s", tuple(values)) for name, values in seconds.items()}


def paired_ratio(name: str, numerator: Case, denominator: Case) -> Case:
    """How many times `denominator` goes into `numerator`, round by round: what slows a whole round down cancels out."""
    return Case(name, "x", tuple(a / b for a, b in zip(numerator.values, denominator.values, strict=True)))
