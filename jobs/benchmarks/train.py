"""Training: our loop against the bare model, two workers against one, what a checkpoint and a lost worker cost, and old habits.

`python -m jobs.benchmark suite=train [quick=true] [output=docs/benchmarks]`. `output` also gets train.png. Real runs on a Ray of its own
on this machine, with `tiny` in float32 and ZeRO-2; everything on two cores.
"""

import json
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
from pydantic import Field

from jobs.benchmarks.bars import Bar, draw_bars
from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Case
from jobs.benchmarks.timing import paired_ratio
from jobs.benchmarks.train_habits import AT_PHOTO, PER_QUESTION, PLAIN, PREPARE, PREPARE_UNUSED, measure_habits
from jobs.benchmarks.train_workers import KILLED_RANK, DetectionStamp, Stamps, stamped_worker, step_worker
from pixellm.data.parts import ShardOptions
from pixellm.data.prepare import prepare
from pixellm.data.sources.shapes import ShapesSource
from pixellm.drawing import color_of
from pixellm.storage import join_uri
from pixellm.train.base import prepare_base
from pixellm.train.config import TrainConfig
from pixellm.train.sinks.tensorboard import EVENTS_FOLDER
from pixellm.train.trainer import build_trainer

NUM_CPUS = 4  # logical: two workers, and room for Ray Data beside them
WARMUP_STEPS = 2
POLL_S = 0.05


class Config(BenchmarkConfig):
    """`quick` takes one short run of each kind."""

    photos_per_step: int = Field(12, gt=0, description="of each worker; a step should take half a second and more")
    steps: int = Field(12, gt=WARMUP_STEPS + 1, description="of each measured run, the first two not counted")
    runs: int = Field(2, gt=0, description="with one worker and with two")
    repeats: int = Field(7, gt=0, description="of the steps with old habits")
    resumes: int = Field(2, gt=0, description="runs in which a worker is killed")


def run(config: Config) -> BenchmarkResult:
    """Runs with one worker and with two take turns, so that a change of the machine's speed meets both."""
    if config.quick:
        config = config.model_copy(update={"photos_per_step": 4, "steps": 6, "runs": 1, "repeats": 1, "resumes": 1})
    folder = Path(tempfile.mkdtemp(prefix="pixellm-train-"))
    try:
        ray.init(address="local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False, object_store_memory=300_000_000)
        shards = join_uri(folder, "shards")
        prepare(ShapesSource.model_validate({"num_scenes": 300, "questions_per_scene": 3}), shards, ShardOptions.model_validate({}))
        steps: dict[int, dict[str, list[float]]] = {1: {"loop_s": [], "bare_s": []}, 2: {"loop_s": [], "bare_s": []}}
        for number in range(config.runs):
            for num_workers in (1, 2) if number % 2 == 0 else (2, 1):
                for name, values in _measure_steps(config, folder, shards, num_workers, number).items():
                    steps[num_workers][name] += values[WARMUP_STEPS:]
        resumed = [_measure_resume(folder, shards, number) for number in range(config.resumes)]
    finally:
        ray.shutdown()
        shutil.rmtree(folder)
    return _result(config, steps, resumed, measure_habits(config.photos_per_step, config.repeats))


def _train_config(folder: Path, shards: str, run: str, **changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({
        "run": run, "storage": str(folder), "data": [shards], "model": "tiny-random", "precision": "fp32", "zero_stage": 2,
        "cpus_per_worker": 1, "warmup_steps": 2, "stream_memory_mb": 64, "failures": {"loss_limit": 1e9}, **changes})


def _measure_steps(config: Config, folder: Path, shards: str, num_workers: int, number: int) -> dict[str, list[float]]:
    """Seconds of each step of a run; its last, which saves, is in none of them, as nothing is asked for after it."""
    train = _train_config(folder, shards, f"steps-{num_workers}-{number}", steps=config.steps, num_workers=num_workers,
                          photos_per_micro_step=config.photos_per_step, checkpoint_every_steps=config.steps)
    build_trainer(train, prepare_base(train), step_worker).fit()
    found = json.loads((Path(train.run_uri) / "steps.json").read_text())
    return {"loop_s": found["loop_s"], "bare_s": found["bare_s"][:len(found["loop_s"])]}


def _measure_resume(folder: Path, shards: str, number: int) -> dict[str, list[float]]:
    """A worker is killed in the middle. Seconds of the parts of going on, of standing still for checkpoints, and the data wait share."""
    train = _train_config(folder, shards, f"resume-{number}", steps=16, num_workers=2, photos_per_micro_step=4, max_failures=1,
                          checkpoint_every_steps=4, log_every_steps=1)
    stamps = Stamps(f"{train.run_uri}/stamps")
    killed, ended = [0.0], threading.Event()
    killer = threading.Thread(target=_kill_after_step, args=(stamps, 10, killed, ended))
    killer.start()
    try:
        build_trainer(train, prepare_base(train), stamped_worker, [DetectionStamp(str(stamps.folder))]).fit()
    finally:
        ended.set()
        killer.join()
    later = [stamp for stamp in stamps.read() if stamp["at"] > killed[0]]
    detected = next(stamp["at"] for stamp in later if stamp["what"] == "detected")
    entered, built = (max(stamp["at"] for stamp in later if stamp["what"] == what) for what in ("entered", "built"))
    first = min(stamp["step"] for stamp in later if stamp["what"] == "built")
    stepped = max(stamp["at"] for stamp in later if stamp["what"] == "asked" and stamp["step"] == first + 1 and stamp["at"] > built)
    parts = {"detect": detected - killed[0], "restart": entered - detected, "load": built - entered, "first step": stepped - built}
    stalls, waits = (_read_scalars(train, tag) for tag in ("checkpoint/stall_s", "speed/data_wait_share"))
    return {**{name: [value] for name, value in parts.items()}, "resume": [sum(parts.values())],
            "stall": [value for step, value in stalls if step < train.steps], "data wait": [statistics.median(v for _, v in waits)]}


def _kill_after_step(stamps: Stamps, step: int, killed: list[float], ended: threading.Event) -> None:
    while not ended.wait(POLL_S):
        for stamp in stamps.read():
            if stamp["what"] == "asked" and stamp["rank"] == KILLED_RANK and stamp["step"] >= step:
                killed[0] = time.time()
                os.kill(stamp["pid"], signal.SIGKILL)
                return


def _read_scalars(train: TrainConfig, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(join_uri(train.run_uri, EVENTS_FOLDER)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def _result(config: Config, steps: dict[int, dict[str, list[float]]], resumed: list[dict[str, list[float]]],
            habits: dict[str, Case]) -> BenchmarkResult:
    loop, bare, two = (Case(name, "s", tuple(values)) for name, values in (
        ("our step", steps[1]["loop_s"]), ("bare step", steps[1]["bare_s"]), ("our step, two workers", steps[2]["loop_s"])))
    overhead = paired_ratio("our step / bare step", loop, bare)
    resume = [Case(f"after a lost worker: {name}" if name not in ("stall", "data wait") else name, "share" if name == "data wait" else "s",
                   tuple(value for each in resumed for value in each[name])) for name in resumed[0]]
    medians = {name: statistics.median(value for each in resumed for value in each[name]) for name in resumed[0]}
    headline = {
        "overhead_share": round(overhead.median - 1, 4), "scaling_2_workers": round(2 * loop.median / two.median, 3),
        "checkpoint_stall_s": round(medians["stall"], 3), "resume_s": round(medians["resume"], 1),
        "resume_parts_s": {name: round(medians[name], 1) for name in ("detect", "restart", "load", "first step")},
        "data_wait_share": round(medians["data wait"], 3),
        "tower_per_question": round(paired_ratio("", habits[PER_QUESTION], habits[PLAIN]).median, 2),
        "losses_at_photo": round(paired_ratio("", habits[AT_PHOTO], habits[PLAIN]).median, 2),
        "unused_1024_px": round(paired_ratio("", habits[PREPARE_UNUSED], habits[PREPARE]).median, 2)}
    cases = [bare, loop, two, overhead, *resume, *habits.values()]
    if config.output is not None:
        Path(config.output).mkdir(parents=True, exist_ok=True)
        shown = [case for case in cases if case.unit == "s"]
        colors = [color_of(0 if case in (bare, loop, two) else 1 if case in resume else 2) for case in shown]
        bars = [Bar(each.name, each.median, f"{each.median:.3g} s", color) for each, color in zip(shown, colors, strict=True)]
        draw_bars("Training: seconds", bars).save(Path(config.output) / "train.png")
    return BenchmarkResult(headline, cases, notes=(
        f"`tiny`, {config.photos_per_step} photos a step and worker, one thread each. Both steps of a round take the same batch from "
        "memory in the same process; ours is all that the loop does between two batches.",
        "scaling_2_workers: photos per second of two workers over those of one.",
        "stall: the loop stands still for a checkpoint, which is copied; writing goes on beside it. data wait: the share of the time of "
        "two workers with small batches, which stream and decode on the same cores.",
        "After a lost worker: one of two is killed with SIGKILL after step 10, with a checkpoint of step 8. detect: until Ray Train says "
        "so; restart: until both new workers run our code; load: model, checkpoint, DeepSpeed; first step: with the start of the stream.",
        "Old habits, as in the released code: forward and backward of `tiny` over 640 x 480 photos with 3 questions of 2 targets each; the "
        "1024-px copies are made beside the model's input, and nothing reads them."))
