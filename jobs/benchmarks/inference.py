"""Answers per second with masks: the released code's way, transformers' `generate`, and our engine, against the machine's floor.

`python -m jobs.benchmark suite=inference [quick=true] [dtypes=[float32]] [threads=2] [output=docs/benchmarks]`; with a GPU
`device=cuda model=7b dtypes=[bfloat16] output=docs/benchmarks/GPU`. `output` also gets inference.png.
Photos are preprocessed before, masks end as logits: both are the same for everybody.
"""

import functools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from jobs.benchmarks.bars import Bar, draw_bars
from jobs.benchmarks.inference_contenders import (
    Answered,
    EngineContender,
    ModelSize,
    Question,
    StepperWithoutForcedGroups,
    answer_by_generate,
    answer_naively,
    build_answer,
    build_model,
    build_questions,
    wait_for,
)
from jobs.benchmarks.inference_floor import MachineRates, Work, count_work, measure_rates
from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Case, Table
from jobs.benchmarks.timing import paired_ratio, time_interleaved
from pixellm.drawing import Color, color_of
from pixellm.inference.config import EngineConfig
from pixellm.memory import keep_freed_memory

DtypeName = Literal["float32", "bfloat16"]
NAIVE, GENERATE_ONE, ENGINE = "naive", "generate, one by one", "engine"


class Config(BenchmarkConfig):
    """The standard case is 48 new tokens with 4 targets; `quick` takes 14 with 1, one round, and float32."""

    dtypes: tuple[DtypeName, ...] = ("float32", "bfloat16")
    model: ModelSize = Field("standard", description="standard, or the shapes of 7b or 13b; random weights")
    device: Literal["cpu", "cuda"] = "cpu"
    engine: EngineConfig = EngineConfig(slot_tokens=512)
    num_waiting: tuple[int, ...] = Field((1, 4, 16, 64), description="questions that the engine gets at once, also about 2 photos "
                                           "and with groups that are not forced; 1 and 16 always")
    num_mixed: int = Field(32, gt=0, description="questions of 16 to 64 new tokens with 1 to 6 targets, in batches of 16 and in ours")
    repeats: int = Field(3, gt=0)
    threads: int | None = Field(None, gt=0, description="of torch; its own choice by default")


@dataclass(frozen=True)
class Workload:
    """A contender with what it is asked."""

    name: str
    questions: Sequence[Question]
    answer: Callable[[Sequence[Question]], list[Answered]]
    answers: list[Answered] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)

    def run(self, device: torch.device) -> None:
        """For the clock; notes latencies and memory on the way."""
        before_mb = _reset_peak_mb(device)
        self.answers.extend(self.answer(self.questions))
        wait_for(device)
        self.peak_mb.append(_peak_mb(device) - before_mb)


def run(config: Config) -> BenchmarkResult:
    """One table for each dtype; the headline is the first dtype's, the other's keys are below its name."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    if config.quick:
        config = config.model_copy(update={"dtypes": config.dtypes[:1], "num_waiting": (1, 16), "num_mixed": 8, "repeats": 1})
    headline: dict[str, Any] = {}
    cases: list[Case] = []
    tables: list[Table] = []
    for dtype in config.dtypes:
        part = _run_dtype(config, dtype)
        headline |= part.headline if not headline else {dtype: part.headline}
        cases += part.cases
        tables += part.tables
    if config.output is not None:
        colors: dict[str, Color] = {dtype: color_of(index) for index, dtype in enumerate(config.dtypes)}
        bars = [Bar(case.name, case.median, f"{case.median:.3g} s", colors[case.name.split(":")[0]]) for case in cases]
        Path(config.output).mkdir(parents=True, exist_ok=True)
        draw_bars("Seconds for one answer", bars).save(Path(config.output) / "inference.png")
    return BenchmarkResult(headline, cases, tables, notes=(
        "Everybody gives the same scripted answers and still computes the logits; masks end as logits.",
        "naive: no cache, one question, tower and whole prefix for each token. generate: KV cache, one vision pass for each question, the "
        "model's own mask head. Both run on torch's own products and attention; the process keeps freed memory for all alike.",
        "speedup_vs_naive_16 takes 16 times the naive time of one question; vs_generate_one compares one question with one question, "
        "vs_generate_static the same mixed questions.",
        "The floor is the released algorithm's work without its waste at the best rates measured in this run; our mask decoder does less "
        "work than the released one, so a part may be below its floor."))


def _run_dtype(config: Config, dtype: DtypeName) -> BenchmarkResult:
    keep_freed_memory()  # before all contenders, not for the engine's alone
    model = build_model(config.model, getattr(torch, dtype), config.device)
    engine, unforced = EngineContender(model, config.engine), EngineContender(model, config.engine, StepperWithoutForcedGroups)
    answer = build_answer(14, 1) if config.quick else build_answer(48, 4)
    one, sixteen = (build_questions([answer] * num, num) for num in (1, 16))
    mixed = build_questions(_mixed_answers(config.num_mixed), config.num_mixed)
    workloads = [
        Workload(NAIVE, one, lambda questions: answer_naively(model, questions)),
        Workload(GENERATE_ONE, one, lambda questions: answer_by_generate(model, questions, 1)),
        Workload("generate, static batches of 16, mixed", mixed, lambda questions: answer_by_generate(model, questions, 16)),
        *(Workload(name, build_questions([answer] * num, num_photos), contender.answer)
          for num in sorted({1, 16, *config.num_waiting})
          for name, num_photos, contender in (
              (f"{ENGINE}, {num} waiting", num, engine), (f"{ENGINE}, {num} waiting on 2 photos", 2, engine),
              (f"{ENGINE}, {num} waiting, groups not forced", num, unforced)) if num_photos <= num),
        Workload(f"{ENGINE}, mixed", mixed, engine.answer),
    ]
    for workload in workloads[config.device == "cpu":]:  # on a CPU the naive way needs no warm-up, and takes longest
        workload.answer(workload.questions[:2])
    runs = {workload.name: functools.partial(workload.run, model.device) for workload in workloads}
    seconds = time_interleaved(runs, config.repeats, warmups=0)
    rates, work = measure_rates(getattr(torch, dtype), model.device), count_work(model, sixteen)
    profile = _profile(engine, sixteen)
    return BenchmarkResult(
        _headline(seconds, rates, work),
        [Case(f"{dtype}: {each.name}", "s/answer", tuple(value / len(each.questions) for value in seconds[each.name].values))
         for each in workloads],
        [Table(f"`{dtype}`: latency and throughput", (
            "contender", "questions", "answers/s", "masks/s", "first token s", "p95", "first mask s", "p95 ", "end s", "p95  ", "peak MB"),
            [_row(each, seconds[each.name]) for each in workloads]),
         _profile_table(dtype, profile, work, rates)])


def _headline(seconds: dict[str, Case], rates: MachineRates, work: dict[str, Work]) -> dict[str, Any]:
    naive, generate_one = seconds[NAIVE], seconds[GENERATE_ONE]
    engine_1, engine_16 = seconds[f"{ENGINE}, 1 waiting"], seconds[f"{ENGINE}, 16 waiting"]
    on_two, mixed = seconds[f"{ENGINE}, 16 waiting on 2 photos"], seconds[f"{ENGINE}, mixed"]
    naive_16 = Case("naive, 16 questions", "s", tuple(16 * value for value in naive.values))
    ratios = {
        "speedup_vs_naive_1": (naive, engine_1), "speedup_vs_naive_16": (naive_16, engine_16),
        "speedup_vs_naive_16_on_2": (naive_16, on_two), "speedup_vs_generate_one": (generate_one, engine_1),
        "speedup_vs_generate_static": (seconds["generate, static batches of 16, mixed"], mixed),
        "forced_group_gain": (seconds[f"{ENGINE}, 16 waiting, groups not forced"], engine_16), "photo_cache_gain": (engine_16, on_two),
    }
    floor_s = sum(part.floor_s(rates) for part in work.values())
    return {key: round(paired_ratio(key, *pair).median, 2) for key, pair in ratios.items()} | {
        "over_floor_16": round(engine_16.median / floor_s, 2), "floor_16_s": round(floor_s, 3),
        "matrix_gflop_per_s": round(rates.flop_per_s / 1e9), "memory_gb_per_s": round(rates.bytes_per_s / 1e9, 1)}


def _mixed_answers(count: int) -> list[list[int]]:
    """16 to 64 tokens with 1 to 6 targets, as many as fit with a word before each."""
    generator = torch.Generator().manual_seed(2)
    answers = []
    for _ in range(count):
        num_tokens, num_targets = (int(torch.randint(low, high + 1, (), generator=generator)) for low, high in ((16, 64), (1, 6)))
        answers.append(build_answer(num_tokens, min(num_targets, num_tokens // 7)))
    return answers


def _row(workload: Workload, seconds: Case) -> list[Any]:
    num_masks = sum(question.num_targets for question in workload.questions)
    latencies = [value for name in ("first_token_s", "first_mask_s", "end_s")
                 for value in _median_and_p95([getattr(answered, name) for answered in workload.answers])]
    return [workload.name, len(workload.questions), len(workload.questions) / seconds.median, num_masks / seconds.median, *latencies,
            round(max(workload.peak_mb))]


def _median_and_p95(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]


def _profile(contender: EngineContender, questions: Sequence[Question]) -> dict[str, float]:
    """Seconds of one more run by part, under the names of `count_work`; `rest` is what is in none of them."""
    stepper, decoder = contender.stepper, contender.stepper._masks._decoder
    seconds: dict[str, float] = defaultdict(float)
    parts = [(stepper.model, "encode_photos", "vision tower"), (stepper._slots, "forward", "prefill and answer tokens"),
             (stepper.model, "token_logits", "prefill and answer tokens"), (decoder, "prepare", "mask decoder, by photo"),
             (decoder, "decode", "mask decoder, by target")]
    for owner, name, part in parts:
        setattr(owner, name, _timed(getattr(owner, name), part, seconds, stepper.model.device))
    started = time.perf_counter()
    contender.answer(questions)
    total_s = time.perf_counter() - started
    for owner, name, _ in parts:
        delattr(owner, name)
    return dict(seconds) | {"rest": total_s - sum(seconds.values())}


def _timed(function: Callable[..., Any], part: str, seconds: dict[str, float], device: torch.device) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        wait_for(device)
        started = time.perf_counter()
        result = function(*args, **kwargs)
        wait_for(device)
        seconds[part] += time.perf_counter() - started
        return result

    return timed


def _profile_table(dtype: str, profile: dict[str, float], work: dict[str, Work], rates: MachineRates) -> Table:
    floors = {part: each.floor_s(rates) for part, each in work.items()}
    floors["prefill and answer tokens"] = floors["prefill"] + floors["answer tokens"]
    total_s = sum(profile.values())
    return Table(f"`{dtype}`: where the engine's time goes, 16 waiting on 16 photos", ("part", "s", "share", "floor s"),
                 [(part, seconds, seconds / total_s, floors.get(part, 0.0)) for part, seconds in profile.items()])


def _reset_peak_mb(device: torch.device) -> float:
    """Starts a new peak, of the GPU's memory or of the process's (Linux only), and returns what is held now, in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _status_mb("VmRSS")


def _peak_mb(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else _status_mb("VmHWM")


def _status_mb(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
