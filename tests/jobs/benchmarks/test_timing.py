"""The order of measuring; no test here looks at how long anything took."""

import gc

import pytest

from jobs.benchmarks.result import Case
from jobs.benchmarks.timing import paired_ratio, time_interleaved


def test_calls_take_turns_and_the_order_turns_round():
    calls = []
    cases = time_interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, warmups=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(case.values) for name, case in cases.items()} == {"a": 3, "b": 3} and cases["a"].unit == "s"


def test_the_collector_is_off_while_timing_and_back_afterwards():
    states = []
    time_interleaved({"a": lambda: states.append(gc.isenabled())}, repeats=2, warmups=0)
    assert states == [False, False] and gc.isenabled()


def test_a_ratio_is_taken_round_by_round():
    slow_round_last = paired_ratio("gain", Case("a", "s", (2.0, 2.0, 20.0)), Case("b", "s", (1.0, 1.0, 10.0)))
    assert slow_round_last.values == (2.0, 2.0, 2.0) and slow_round_last.unit == "x"
    with pytest.raises(ValueError):
        paired_ratio("gain", Case("a", "s", (1.0,)), Case("b", "s", (1.0, 2.0)))
