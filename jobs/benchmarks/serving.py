"""The deployed app under load, against the bare engine, a plain FastAPI app with the model behind a lock, and `@serve.batch`.

`python -m jobs.benchmark suite=serving [quick=true] [model=URI] [output=docs/benchmarks]`; `output` also gets serving.png. Client and
servers share the machine. One replica, one torch thread for each model; each request has a photo of its own.
"""

import asyncio
import itertools
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from pydantic import Field

from jobs.benchmarks.bars import Bar, draw_bars
from jobs.benchmarks.data_contenders import tree_cpu_s
from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Case, Table
from jobs.benchmarks.serving_contenders import BATCH_SIZE, Answer, Ask, start_contenders
from jobs.benchmarks.timing import paired_ratio
from pixellm.data.sources.shapes import draw_scene
from pixellm.drawing import color_of
from pixellm.inference.config import EngineConfig
from serve.config import AppConfig

QUESTIONS = ("which of these can roll?", "where is the largest thing?", "what is on the left?", "which are red or blue?")
NUM_PHOTOS, PHOTO_PX = 256, 96
OVERLOAD = 10.0  # times the capacity


class Config(BenchmarkConfig):
    """`quick` takes one round of 16 questions and three rates for three seconds."""

    model: str = Field("tiny", description="a model directory or its URI; tiny is the one that ships with the package")
    engine: EngineConfig = Field(EngineConfig(num_slots=BATCH_SIZE, photo_cache_mb=64),
                                 description=f"its photo cache has to hold fewer than {NUM_PHOTOS} photos, or they are not new to it")
    max_new_tokens: int = Field(48, gt=0)
    concurrency: int = Field(16, gt=0, description="questions that wait at any time, for the capacity")
    num_requests: int = Field(96, gt=0, description="of each contender in each round")
    repeats: int = Field(3, gt=0)
    load: tuple[float, ...] = Field((0.25, 0.5, 0.75, 0.9, 1.1, 1.5, OVERLOAD), description="arrivals, as parts of the capacity; 10 always")
    duration_s: float = Field(20, gt=0, description="of arrivals at each rate")


@dataclass
class Load:
    """What became of some requests: seconds of those that were answered, and how many had each status."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    duration_s: float = 0.0

    @property
    def goodput(self) -> float:
        """Answers per second."""
        return self.statuses[200] / self.duration_s

    async def ask(self, answer: Answer, client: httpx.AsyncClient, ask: Ask) -> None:
        """One request, noted."""
        started = time.perf_counter()
        status = await answer(client, ask)
        self.statuses[status] += 1
        if status == 200:
            self.latencies_s.append(time.perf_counter() - started)


def run(config: Config) -> BenchmarkResult:
    """See the module."""
    if config.quick:
        config = config.model_copy(update={"num_requests": 16, "repeats": 1, "load": (0.5, 1.1, OVERLOAD), "duration_s": 3.0})
    app = AppConfig.model_validate({"model": config.model, "engine": config.engine.model_dump(), "torch_threads": 1, "num_cpus": 0.5,
                                    "max_ongoing_requests": 2 * BATCH_SIZE, "max_queued_requests": 2 * BATCH_SIZE})
    asks = _asks(config.max_new_tokens)
    with start_contenders(app) as contenders:
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        alone: dict[str, list[float]] = {name: [] for name in contenders}
        cpu_ms: dict[str, list[float]] = {name: [] for name in contenders}
        for answer in contenders.values():
            _measure(_closed_loop, answer, asks, BATCH_SIZE, BATCH_SIZE)
        for repeat in range(config.repeats):
            for name in list(contenders) if repeat % 2 == 0 else reversed(list(contenders)):
                answer, before_s = contenders[name], tree_cpu_s()
                busy = _measure(_closed_loop, answer, asks, config.num_requests, config.concurrency)
                cpu_ms[name].append(1000 * (tree_cpu_s() - before_s) / config.num_requests)
                rates[name].append(busy.goodput)
                quiet = _measure(_closed_loop, answer, asks, max(4, config.num_requests // 6), 1)
                alone[name].append(statistics.median(quiet.latencies_s))
                print(f"{name}: {busy.goodput:.2f} answers/s, alone {1000 * alone[name][-1]:.0f} ms", flush=True)
        capacity = statistics.median(rates["deployed"])
        curve = {part: _measure(_open_loop, contenders["deployed"], asks, part * capacity, config.duration_s)
                 for part in sorted({*config.load, OVERLOAD})}
    return _result(config, rates, alone, cpu_ms, curve)


def _asks(max_new_tokens: int) -> Iterator[Ask]:
    """Without end; a photo comes again after `NUM_PHOTOS` others."""
    photos = []
    for index in range(NUM_PHOTOS):
        stream = BytesIO()
        Image.fromarray(draw_scene(0, index, PHOTO_PX).image).save(stream, "PNG")
        photos.append(stream.getvalue())
    return (Ask(photo, QUESTIONS[number % len(QUESTIONS)], max_new_tokens) for number, photo in enumerate(itertools.cycle(photos)))


def _measure(drive: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Load:
    """`drive(load, client, *arguments)`; the load's duration is until its last answer."""
    load = Load()

    async def measure() -> None:
        async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
            started = time.perf_counter()
            await drive(load, client, *arguments)
            load.duration_s = time.perf_counter() - started

    asyncio.run(measure())
    return load


async def _closed_loop(load: Load, client: httpx.AsyncClient, answer: Answer, asks: Iterator[Ask], number: int, concurrency: int) -> None:
    """`number` requests, `concurrency` of them at any time."""
    todo = iter([next(asks) for _ in range(number)])

    async def worker() -> None:
        for ask in todo:
            await load.ask(answer, client, ask)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def _open_loop(load: Load, client: httpx.AsyncClient, answer: Answer, asks: Iterator[Ask], rate_per_s: float,
                     duration_s: float) -> None:
    """Requests come at random moments, whether others were answered or not."""
    draw, loop = random.Random(0), asyncio.get_running_loop()
    due_s, tasks = loop.time(), []
    end_s = due_s + duration_s
    while (due_s := due_s + draw.expovariate(rate_per_s)) < end_s:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        tasks.append(asyncio.create_task(load.ask(answer, client, next(asks))))
    await asyncio.gather(*tasks)


def _result(config: Config, rates: dict[str, list[float]], alone: dict[str, list[float]], cpu_ms: dict[str, list[float]],
            curve: dict[float, Load]) -> BenchmarkResult:
    rate_cases = {name: Case(f"{name}, {config.concurrency} waiting", "answers/s", tuple(values)) for name, values in rates.items()}
    alone_cases = {name: Case(f"{name}, alone", "s", tuple(values)) for name, values in alone.items()}
    cpu_cases = {name: Case(f"{name}, CPU of all processes", "ms/answer", tuple(values)) for name, values in cpu_ms.items()}
    capacity, deployed = rate_cases["deployed"].median, rate_cases["deployed"]
    peak = max(load.goodput for load in curve.values())
    headline = {
        "throughput_vs_engine": round(paired_ratio("", deployed, rate_cases["engine"]).median, 3),
        "latency_over_engine_ms": round(1000 * statistics.median(
            ours - bare for ours, bare in zip(alone["deployed"], alone["engine"], strict=True)), 1),
        "throughput_vs_lock": round(paired_ratio("", deployed, rate_cases["FastAPI, lock"]).median, 2),
        "throughput_vs_serve_batch": round(paired_ratio("", deployed, rate_cases["@serve.batch"]).median, 2),
        "goodput_at_10x_vs_peak": round(curve[OVERLOAD].goodput / peak, 3)}
    rows = [(part, part * capacity, load.goodput, *_percentiles(load.latencies_s), load.statuses[200],
             load.statuses.total() - load.statuses[200], ", ".join(str(status) for status in sorted(load.statuses)))
            for part, load in curve.items()]
    if config.output is not None:
        bars = [Bar(case.name, case.median, f"{case.median:.3g} answers/s", color_of(0)) for case in rate_cases.values()]
        bars += [Bar(f"deployed, {part:g} x capacity arriving", load.goodput, f"{load.goodput:.3g} answers/s", color_of(1))
                 for part, load in curve.items()]
        Path(config.output).mkdir(parents=True, exist_ok=True)
        draw_bars("Answers per second", bars).save(Path(config.output) / "serving.png")
    columns = ("of capacity", "arrivals/s", "answers/s", "median s", "p95 s", "p99 s", "answered", "refused", "statuses")
    return BenchmarkResult(headline, [*rate_cases.values(), *alone_cases.values(), *cpu_cases.values()],
                           [Table("The deployed app, requests at random moments", columns, rows)], notes=(
        "The bare engine runs in the client's process, with photos decoded in threads as the ingress does.",
        "CPU counts the client too, and what idle servers take.",
        "answers/s of the curve are until the last answer, so a rate below the capacity shows less than its arrivals."))


def _percentiles(latencies_s: list[float]) -> list[float]:
    """Median, 95th and 99th; not a number of nothing."""
    if not latencies_s:
        return [math.nan] * 3
    return np.percentile(latencies_s, (50, 95, 99), method="inverted_cdf").tolist()
