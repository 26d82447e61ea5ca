"""How the serving suite drives servers and counts, on answers that take a known time. The servers themselves: python -m jobs.benchmark."""

import asyncio
import itertools
from collections import Counter

import pytest
from PIL import Image

from jobs.benchmarks.serving import OVERLOAD, Comparison, Config, Load, _asks, _closed_loop, _measure, _open_loop, _percentiles, _result
from jobs.benchmarks.serving_contenders import write_standard_model
from pixellm.inference.segmenter import Segmenter
from pixellm.testing import random_photo


class Counting:
    """Answers after `wait_s`, and refuses all above `limit` at a time."""

    def __init__(self, wait_s=0.01, limit=1000):
        self.wait_s, self.limit, self.running, self.most = wait_s, limit, 0, 0

    async def __call__(self, client, ask):
        if self.running >= self.limit:
            return 503
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.wait_s)
        self.running -= 1
        return 200


def test_a_closed_loop_keeps_as_many_waiting_as_asked():
    answer = Counting()
    load = _measure(_closed_loop, answer, _asks(5, 32), 12, 4)
    assert load.statuses == {200: 12} and answer.most == 4 and len(load.latencies_s) == 12
    assert load.goodput == pytest.approx(12 / load.duration_s)


def test_an_open_loop_does_not_wait_for_answers():
    answer = Counting(wait_s=0.5, limit=20)
    load = _measure(_open_loop, answer, _asks(5, 32), 200.0, 0.3)
    assert answer.most == 20 == load.statuses[200] == len(load.latencies_s)
    assert 20 <= load.statuses[503] <= 70, "about 60 come in 0.3 s"


def test_each_question_has_a_photo_of_its_own():
    asks = list(itertools.islice(_asks(5, 32), 64))
    assert len({ask.photo for ask in asks}) == 64 and len({ask.question for ask in asks}) == 4


def test_percentiles():
    assert _percentiles([float(value) for value in range(1, 101)]) == [50.0, 95.0, 99.0]
    assert all(value != value for value in _percentiles([]))


def test_the_figures_are_put_together_and_drawn(tmp_path):
    names = ("engine", "deployed", "@serve.batch", "FastAPI, lock")
    rates = {name: [rate, rate] for name, rate in zip(names, (10.0, 9.0, 6.0, 3.0), strict=True)}
    alone = {name: [wait_s, wait_s] for name, wait_s in zip(names, (0.1, 0.11, 0.2, 0.1), strict=True)}
    standard = Comparison({"engine": [2.0, 2.0], "deployed": [1.9, 1.9]}, {"engine": [0.5, 0.5], "deployed": [0.512, 0.512]}, {})
    tiny_curve = {1.0: Load([0.1] * 8, Counter({200: 8}), 1.0), OVERLOAD: Load([0.4] * 6, Counter({200: 6, 503: 84}), 1.0)}
    standard_curve = {1.1: Load([0.1] * 2, Counter({200: 2}), 1.0), OVERLOAD: Load([0.4] * 9, Counter({200: 9, 503: 81}), 5.0)}
    config = Config(suite="serving", output=str(tmp_path))
    result = _result(config, Comparison(rates, alone, rates), tiny_curve, standard, standard_curve)
    assert result.headline == {"throughput_vs_engine": 0.95, "added_latency_ms": 12.0, "goodput_at_10x_vs_peak": 0.9,
                               "tiny_throughput_vs_engine": 0.9, "tiny_added_latency_ms": 10.0,
                               "tiny_goodput_at_10x_vs_peak": 0.667, "vs_locked_fastapi": 3.0, "vs_serve_batch": 1.5}
    assert result.tables[0].rows[1] == (OVERLOAD, 90.0, 6.0, 0.4, 0.4, 0.4, 6, 84, "200, 503")
    assert [row[:3] for row in result.tables[1].rows] == [(1.1, pytest.approx(2.09), 2.0), (OVERLOAD, 19.0, 1.8)]
    assert {case.name for case in result.cases} >= {"deployed, alone", "standard case: engine, 16 waiting"}
    assert Image.open(tmp_path / "serving.png").height > 6 * 20


def test_the_standard_model_answers_to_the_limit(tmp_path):
    write_standard_model(str(tmp_path))
    segmenter = Segmenter.from_pretrained(str(tmp_path))
    answer = segmenter.segment(random_photo(64, 48), "what is this?", 12)
    assert (answer.finish_reason, answer.num_tokens) == ("length", 12)
