"""Photos per second of the stream against the limit of the machine and a torch DataLoader; rows per second of preparing.

`bash platform/local/with_store.sh python -m jobs.benchmark suite=data [quick=true] [output=docs/benchmarks]`

All three make the same batches out of the same photos: decode, resize to `image_size`, normalise, pad, stack. Photos are drawn (noise whose
spectrum falls as natural photos' does, 640 x 480 JPEG), and no cache of decoded pixels is possible. Each run has a process tree of its
own, held on as many cores as it may use; the store runs beside it on all.
"""

import math
import shutil
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import ray
from pydantic import Field

from jobs.benchmarks.bars import Bar, draw_bars
from jobs.benchmarks.data_contenders import CONTENDERS, FIRST_PHOTOS, Job, measure
from jobs.benchmarks.data_decoders import measure_decoders
from jobs.benchmarks.data_padding import measure_padding
from jobs.benchmarks.data_photos import write_instances, write_photo_shards, write_photos
from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Case, Table
from pixellm.data.parts import ShardOptions
from pixellm.data.prepare import prepare
from pixellm.data.sources.coco import CocoSource
from pixellm.drawing import color_of
from pixellm.storage import delete, join_uri
from pixellm.uris import Uri

NUM_SETS = 3
PHOTOS_PER_STEP, NUM_NODES = 1280, 8  # the paper's batch on 64 GPUs: micro-batch 2, accumulation 10
STEPS_S = (20, 5, 2, 1)


class Config(BenchmarkConfig):
    """How much, and where."""

    store: Uri = Field("s3://pixellm/benchmark-data", description="URI that takes the shards; removed afterwards")
    num_photos: int = Field(1500, gt=NUM_SETS, description="distinct photos, in three sets")
    image_size: int = Field(448, gt=0)
    photos_per_batch: int = Field(8, gt=0)
    measured_photos: int = Field(3000, gt=0, description=f"of each run, after its first {FIRST_PHOTOS}")
    cores: tuple[int, ...] = (1, 2)
    repeats: int = Field(3, gt=0)


def run(config: Config) -> BenchmarkResult:
    """Contenders take turns, so that a change of the machine's speed meets all of them."""
    if config.quick:
        config = config.model_copy(update={"num_photos": 600, "measured_photos": 1000, "cores": (max(config.cores),), "repeats": 1})
    folder = Path(tempfile.mkdtemp(prefix="pixellm-data-"))
    try:
        mean_bytes = write_photos(folder / "photos", config.num_photos)
        uris = write_photo_shards(folder / "photos", config.store, NUM_SETS)
        local = write_photo_shards(folder / "photos", str(folder / "shards"), NUM_SETS)
        runs: dict[tuple[str, int], list[dict[str, float]]] = {}
        rounds = list(product(range(config.repeats), config.cores, CONTENDERS))
        for number, (_, cores, name) in enumerate(rounds, 1):
            job = Job(name, cores, local if name == "limit" else uris, str(folder / "photos"), config.image_size,
                      config.photos_per_batch, config.measured_photos)
            found = measure(job)
            runs.setdefault((name, cores), []).append(found)
            print(f"{number} of {len(rounds)}: {name}, {cores} cores: {found['images_per_s']:.0f} images/s", flush=True)
        prepared = _prepare(folder)
    finally:
        shutil.rmtree(folder)
        delete(config.store)
    return _result(config, runs, prepared, mean_bytes, measure_decoders(config.image_size, config.repeats), measure_padding())


def _prepare(folder: Path) -> dict[str, float]:
    """Rows per second, and the share of the tasks' time that rasterising and encoding masks takes."""
    write_instances(folder / "photos", folder / "instances_train.json")
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    source = CocoSource.model_validate({"input": str(folder / "photos"), "annotations": str(folder / "instances_train.json")})
    done = prepare(source, join_uri(folder, "prepared"), ShardOptions.model_validate({}))
    ray.shutdown()
    counts = done.counts
    task_s = counts.read_s + counts.build_s + counts.check_s + counts.write_s
    return {"rows_per_s": counts.num_rows / done.duration_s, "regions_per_s": counts.num_regions / done.duration_s,
            "rasterise_share": counts.build_s / task_s, "check_share": counts.check_s / task_s}


def _cores_needed(photos_per_core_s: float, mean_bytes: float) -> Table:
    """By the rate of the stream. How long a step takes is the reader's to know."""
    rates = [(step_s, PHOTOS_PER_STEP / step_s) for step_s in STEPS_S]
    rows = [(step_s, rate, rate * mean_bytes / 1e6, math.ceil(rate / photos_per_core_s), math.ceil(rate / photos_per_core_s / NUM_NODES))
            for step_s, rate in rates]
    columns = ("seconds of an optimiser step", "photos/s, 64 GPUs", "MB/s from the store", "cores, all nodes", "cores per node of 8 GPUs")
    return Table(f"What 64 GPUs at the paper's batch need, at {photos_per_core_s:.0f} photos/s a core", columns, rows)


def _result(config: Config, runs: dict[tuple[str, int], list[dict[str, float]]], prepared: dict[str, float],
            mean_bytes: float, decoders: list[Case], padding: Table) -> BenchmarkResult:
    cases = [Case(f"{name}, {cores} cores, {what}", unit, tuple(each[key] for each in found))
             for (name, cores), found in runs.items()
             for what, key, unit in (("steady", "images_per_s", "images/s"), ("CPU time", "cpu_ms_per_image", "ms/image"),
                                     ("first batch", "first_batch_s", "s"), ("peak memory", "peak_rss_mb", "MB"))]
    median = {case.name: case.median for case in cases}
    most = max(config.cores)

    def ratio(name: str, other: str, cores: int) -> float:
        return median[f"{name}, {cores} cores, steady"] / median[f"{other}, {cores} cores, steady"]

    headline: dict[str, Any] = {
        "stream_vs_limit": ratio("stream", "limit", most), "stream_vs_dataloader": ratio("stream", "dataloader", most),
        "mixture_vs_limit": ratio("mixture", "limit", most), "first_batch_s": median[f"stream, {most} cores, first batch"],
        "peak_rss_mb": median[f"stream, {most} cores, peak memory"], "prepare_rows_per_s": prepared["rows_per_s"],
        "prepare_rasterise_share": prepared["rasterise_share"]}
    headline |= {f"stream_vs_limit_{cores}_cores": ratio("stream", "limit", cores) for cores in config.cores}
    headline["stream_cpu_vs_limit"] = median[f"limit, {most} cores, CPU time"] / median[f"stream, {most} cores, CPU time"]
    rows = [(key, value) for key, value in prepared.items()]
    table = Table(f"Preparing {config.num_photos:,} photos with 8 polygons each", ("figure", "value"), rows)
    if config.output is not None:
        colors = {name: color_of(index) for index, name in enumerate(CONTENDERS)}
        bars = [Bar(case.name.removesuffix(", steady"), case.median, f"{case.median:,.0f}", colors[case.name.partition(",")[0]])
                for case in cases if case.name.endswith("steady")]
        Path(config.output).mkdir(parents=True, exist_ok=True)
        draw_bars("Photos per second", bars).save(Path(config.output) / "data.png")
    needed = _cores_needed(median[f"stream, {most} cores, steady"] / most, mean_bytes)
    return BenchmarkResult(headline, [*cases, *decoders], [table, padding, needed], (
        f"Photos are drawn, 640 x 480 JPEG of {mean_bytes / 1000:.0f} kB in the mean; batches of {config.photos_per_batch} at "
        f"{config.image_size} px, float32.",
        "limit: one process for each core reads local Parquet and makes batches that nobody receives. dataloader: torch DataLoader, one "
        "worker for each core, over local JPEG files. stream: BatchStream from S3. mixture: the same over three sets by weight.",
        "The stream's photos travel as bytes and are normalised by the process that receives them, which counts; the others normalise in "
        "their workers. decode: CPU time of decoding and resizing one photo, by each library; the contenders decode by `decode_photo`.",
        f"steady: after the first {FIRST_PHOTOS} photos; the start of Ray, of workers and of imports is in `first batch` only, from the "
        "start of the process tree. peak memory: resident memory of the process tree, shared pages counted in each process."))
