"""The deployed app under load, against the bare engine, a plain FastAPI app with the model behind a lock, and `@serve.batch`.

`python -m jobs.benchmark suite=serving [quick=true] [model=URI] [output=docs/benchmarks]`; `output` also gets serving.png. Client and
servers share the machine. One replica, one torch thread for each model; each request has a photo of its own. What HTTP and Ray cost is
measured again with the standard case of `suite=inference`, where an answer takes about a second, and so is the app with ten times the
requests that it can answer.
"""

import asyncio
import itertools
import math
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image
from pydantic import Field

from jobs.benchmarks.bars import Bar, draw_bars
from jobs.benchmarks.data_contenders import tree_cpu_s
from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Case, Table
from jobs.benchmarks.serving_contenders import BATCH_SIZE, Answer, Ask, start_contenders, write_standard_model
from jobs.benchmarks.timing import paired_ratio
from pixellm.data.sources.shapes import draw_scene
from pixellm.drawing import color_of
from pixellm.inference.config import EngineConfig
from pixellm.uris import ModelUri
from serve.config import AppConfig

QUESTIONS = ("which of these can roll?", "where is the largest thing?", "what is on the left?", "which are red or blue?")
NUM_PHOTOS, PHOTO_PX, STANDARD_PX = 256, 96, 448
OVERLOAD = 10.0  # times the capacity


class Config(BenchmarkConfig):
    """`quick` takes one round of 16 questions and three rates for three seconds."""

    model: ModelUri = Field("tiny", description="a model directory or its URI; tiny is the one that ships with the package")
    engine: EngineConfig = Field(EngineConfig(num_slots=BATCH_SIZE, photo_cache_mb=64),
                                 description=f"its photo cache has to hold fewer than {NUM_PHOTOS} photos, or they are not new to it")
    max_new_tokens: int = Field(48, gt=0)
    concurrency: int = Field(16, gt=0, description="questions that wait at any time, for the capacity")
    num_requests: int = Field(96, gt=0, description="of each contender in each round")
    num_standard_requests: int = Field(32, gt=0, description="the same, in the standard case")
    repeats: int = Field(3, gt=0)
    load: tuple[float, ...] = Field((0.25, 0.5, 0.75, 0.9, 1.1, 1.5), description=f"arrivals as parts of the capacity; {OVERLOAD:g} always")
    standard_load: tuple[float, ...] = Field((1.1,), description="the same, in the standard case")
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

    async def ask(self, answer: Answer, client: aiohttp.ClientSession, ask: Ask) -> None:
        """One request, noted."""
        started = time.perf_counter()
        status = await answer(client, ask)
        self.statuses[status] += 1
        if status == 200:
            self.latencies_s.append(time.perf_counter() - started)


@dataclass
class Comparison:
    """Of each contender in each round: answers per second, the median seconds of a question alone, and milliseconds of CPU an answer."""

    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    alone_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def cases(self, prefix: str, concurrency: int) -> list[Case]:
        """All of them."""
        parts = ((f"{concurrency} waiting", "answers/s", self.rates), ("alone", "s", self.alone_s),
                 ("CPU of all processes", "ms/answer", self.cpu_ms))
        return [Case(f"{prefix}{name}, {what}", unit, tuple(values)) for what, unit, found in parts for name, values in found.items()]

    @property
    def capacity(self) -> float:
        """Answers per second of the deployed app with enough questions at any time, in the median of the rounds."""
        return statistics.median(self.rates["deployed"])

    def ratio(self, other: str) -> float:
        """Answers per second of the deployed app over those of another, in the median of the rounds."""
        cases = [Case(name, "answers/s", tuple(self.rates[name])) for name in ("deployed", other)]
        return paired_ratio("", *cases).median

    def added_ms(self) -> float:
        """What a question alone takes longer than in the bare engine, in the median of the rounds."""
        pairs = zip(self.alone_s["deployed"], self.alone_s["engine"], strict=True)
        return 1000 * statistics.median(ours - bare for ours, bare in pairs)


def run(config: Config) -> BenchmarkResult:
    """See the module."""
    if config.quick:
        config = config.model_copy(update={"num_requests": 16, "num_standard_requests": 8, "repeats": 1, "load": (0.5, 1.1),
                                           "duration_s": 3.0})
    app = AppConfig.model_validate({"model": config.model, "engine": config.engine.model_dump(), "torch_threads": 1, "num_cpus": 0.5,
                                    "max_ongoing_requests": 4 * BATCH_SIZE})
    asks = _asks(config.max_new_tokens, PHOTO_PX)
    with start_contenders(app) as contenders:
        tiny = _compare(contenders, asks, config, config.num_requests)
        tiny_curve = _load(contenders["deployed"], asks, tiny, config.load, config.duration_s)
    with tempfile.TemporaryDirectory(prefix="pixellm-standard-") as folder:
        write_standard_model(folder)
        app = app.model_copy(update={"model": folder, "engine": EngineConfig(num_slots=BATCH_SIZE), "max_ongoing_requests": 2 * BATCH_SIZE})
        with start_contenders(app, only=("engine", "deployed")) as contenders:
            asks = _asks(config.max_new_tokens, STANDARD_PX)
            standard = _compare(contenders, asks, config, config.num_standard_requests)
            standard_curve = _load(contenders["deployed"], asks, standard, config.standard_load, config.duration_s)
    return _result(config, tiny, tiny_curve, standard, standard_curve)


def _compare(contenders: dict[str, Answer], asks: Iterator[Ask], config: Config, num_requests: int) -> Comparison:
    found = Comparison()
    for answer in contenders.values():
        _measure(_closed_loop, answer, asks, BATCH_SIZE, BATCH_SIZE)
    for repeat in range(config.repeats):
        names = list(contenders)[:: 1 if repeat % 2 == 0 else -1]
        for name in names:
            before_s = tree_cpu_s()
            busy = _measure(_closed_loop, contenders[name], asks, num_requests, config.concurrency)
            found.cpu_ms[name].append(1000 * (tree_cpu_s() - before_s) / num_requests)
            found.rates[name].append(busy.goodput)
        quiet: dict[str, list[float]] = defaultdict(list)
        for _ in range(max(8, num_requests // 6)):
            for name in names:  # in turn: the machine's speed changes by more than what is looked for
                quiet[name] += _measure(_closed_loop, contenders[name], asks, 1, 1).latencies_s
        for name in names:
            found.alone_s[name].append(statistics.median(quiet[name]))
            print(f"{name}: {found.rates[name][-1]:.2f} answers/s, alone {1000 * found.alone_s[name][-1]:.0f} ms", flush=True)
    return found


def _load(answer: Answer, asks: Iterator[Ask], measured: Comparison, parts: tuple[float, ...], duration_s: float) -> dict[float, Load]:
    """What becomes of requests at random moments, by how many of the capacity come."""
    curve = {}
    for part in sorted({*parts, OVERLOAD}):
        curve[part] = _measure(_open_loop, answer, asks, part * measured.capacity, duration_s)
        print(f"{part:g} x capacity: {curve[part].goodput:.2f} answers/s of {measured.capacity:.2f}", flush=True)
    return curve


def _asks(max_new_tokens: int, photo_px: int) -> Iterator[Ask]:
    """Without end; a photo comes again after `NUM_PHOTOS` others."""
    photos = []
    for index in range(NUM_PHOTOS):
        stream = BytesIO()
        Image.fromarray(draw_scene(0, index, photo_px).image).save(stream, "PNG")
        photos.append(stream.getvalue())
    return (Ask(photo, QUESTIONS[number % len(QUESTIONS)], max_new_tokens) for number, photo in enumerate(itertools.cycle(photos)))


def _measure(drive: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> Load:
    """`drive(load, client, *arguments)`; the load's duration is until its last answer."""
    load = Load()

    async def measure() -> None:
        connections = aiohttp.TCPConnector(limit=0)  # without a limit
        async with aiohttp.ClientSession(connector=connections, timeout=aiohttp.ClientTimeout(300)) as client:
            started = time.perf_counter()
            await drive(load, client, *arguments)
            load.duration_s = time.perf_counter() - started

    asyncio.run(measure())
    return load


async def _closed_loop(load: Load, client: aiohttp.ClientSession, answer: Answer, asks: Iterator[Ask], number: int,
                       concurrency: int) -> None:
    """`number` requests, `concurrency` of them at any time."""
    todo = iter([next(asks) for _ in range(number)])

    async def worker() -> None:
        for ask in todo:
            await load.ask(answer, client, ask)

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def _open_loop(load: Load, client: aiohttp.ClientSession, answer: Answer, asks: Iterator[Ask], rate_per_s: float,
                     duration_s: float) -> None:
    """Requests come at random moments, whether others were answered or not."""
    draw, loop = random.Random(0), asyncio.get_running_loop()
    due_s, tasks = loop.time(), []
    end_s = due_s + duration_s
    while (due_s := due_s + draw.expovariate(rate_per_s)) < end_s:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        tasks.append(asyncio.create_task(load.ask(answer, client, next(asks))))
    await asyncio.gather(*tasks)


def _result(config: Config, tiny: Comparison, tiny_curve: dict[float, Load], standard: Comparison,
            standard_curve: dict[float, Load]) -> BenchmarkResult:
    headline = {
        "throughput_vs_engine": round(standard.ratio("engine"), 3), "added_latency_ms": round(standard.added_ms(), 1),
        "goodput_at_10x_vs_peak": _kept_goodput(standard, standard_curve),
        "tiny_throughput_vs_engine": round(tiny.ratio("engine"), 3), "tiny_added_latency_ms": round(tiny.added_ms(), 1),
        "tiny_goodput_at_10x_vs_peak": _kept_goodput(tiny, tiny_curve),
        "vs_locked_fastapi": round(tiny.ratio("FastAPI, lock"), 2), "vs_serve_batch": round(tiny.ratio("@serve.batch"), 2)}
    if config.output is not None:
        bars = [Bar(name, statistics.median(values), f"{statistics.median(values):.3g} answers/s", color_of(0))
                for name, values in tiny.rates.items()]
        bars += [Bar(f"deployed, {part:g} x capacity arriving", load.goodput, f"{load.goodput:.3g} answers/s", color_of(1))
                 for part, load in tiny_curve.items()]
        Path(config.output).mkdir(parents=True, exist_ok=True)
        draw_bars("Answers per second", bars).save(Path(config.output) / "serving.png")
    cases = [*tiny.cases("", config.concurrency), *standard.cases("standard case: ", config.concurrency)]
    tables = [_table("The deployed app, requests at random moments", tiny, tiny_curve),
              _table("The same in the standard case", standard, standard_curve)]
    return BenchmarkResult(headline, cases, tables, notes=(
        "The bare engine runs in the client's process, with photos decoded in threads as the ingress does.",
        "CPU counts the client too, and what idle servers take.",
        "answers/s of the curve are until the last answer, so a rate below the capacity shows less than its arrivals.",
        "Goodput at ten times the capacity is compared with the highest of all rates and of the capacity itself.",
        "The standard case has random weights: its answers are 48 tokens without sense."))


def _kept_goodput(measured: Comparison, curve: dict[float, Load]) -> float:
    peak = max(measured.capacity, *(load.goodput for load in curve.values()))
    return round(curve[OVERLOAD].goodput / peak, 3)


def _table(title: str, measured: Comparison, curve: dict[float, Load]) -> Table:
    columns = ("of capacity", "arrivals/s", "answers/s", "median s", "p95 s", "p99 s", "answered", "refused", "statuses")
    return Table(title, columns, [
        (part, part * measured.capacity, load.goodput, *_percentiles(load.latencies_s), load.statuses[200],
         load.statuses.total() - load.statuses[200], ", ".join(str(status) for status in sorted(load.statuses)))
        for part, load in curve.items()])


def _percentiles(latencies_s: list[float]) -> list[float]:
    """Median, 95th and 99th; not a number of nothing."""
    if not latencies_s:
        return [math.nan] * 3
    return np.percentile(latencies_s, (50, 95, 99), method="inverted_cdf").tolist()
