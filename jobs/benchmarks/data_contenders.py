"""Who makes batches in `suite=data`: the bare loop, our stream, our stream over a mixture, a torch DataLoader. One process tree each."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import ray
import torch

from pixellm.data.manifest import read_manifest
from pixellm.data.spans import StreamedRow, read_mixture
from pixellm.data.stream import BatchStream
from pixellm.model.packing import normalise_pixels
from pixellm.model.processing_pixellm import PixelLMImageProcessor
from pixellm.photos import decode_photo

FIRST_PHOTOS = 1000  # before steady state is measured: the stream reads ever further ahead until its memory is full
SAMPLE_S = 0.1
MEMORY_MB = 1000  # of the stream


@dataclass(frozen=True)
class Job:
    """One run of one contender on `cores` cores."""

    contender: str
    cores: int
    shards: list[str]
    photos: str
    image_size: int
    photos_per_batch: int
    measured_photos: int


class PhotoBuilder:
    """The work that all contenders do, as a builder of the stream."""

    def __init__(self, image_size: int):
        self.images = PixelLMImageProcessor(image_size=image_size, mask_size=image_size // 4, image_tokens_per_side=image_size // 28)

    def length(self, row: StreamedRow) -> int:
        """All are of one length."""
        return 0

    def build(self, rows: list[StreamedRow]) -> dict[str, torch.Tensor]:
        """Pixels (B, S, S, 3) uint8, and the sizes of the photos in them."""
        return self.pack([row.row["image"] for row in rows])

    def pack(self, photos: list[bytes]) -> dict[str, torch.Tensor]:
        """The same of encoded photos."""
        return self.images.to_pixels([decode_photo(photo, self.images.image_size)[0] for photo in photos])

    def unpack(self, packed: dict[str, torch.Tensor]) -> torch.Tensor:
        """Pixels (B, 3, S, S) float32, as the model takes them."""
        return normalise_pixels(packed["pixels"], packed["resized_sizes_hw"], self.images.image_mean, self.images.image_std)

    def batch(self, photos: list[bytes]) -> torch.Tensor:
        """Both steps."""
        return self.unpack(self.pack(photos))


def measure(job: Job) -> dict[str, float]:
    """images_per_s and cpu_ms_per_image in steady state, first_batch_s and peak_rss_mb of a fresh process tree."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    started = time.time()
    process = context.Process(target=_run, args=(job, started, sender))
    process.start()
    peak, ended = [0.0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended))
    watcher.start()
    try:
        found = receiver.recv()
    finally:
        ended.set()
        watcher.join()
        process.join()
    return found | {"peak_rss_mb": peak[0] / 1e6}


def _watch(pid: int, peak: list[float], ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_S):
        total = 0
        try:
            tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in tree:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], total)


def tree_cpu_s() -> float:
    """CPU time, user and system, that this process and all that descend from it have taken."""
    own, total = psutil.Process(), 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _run(job: Job, started: float, sender: Any) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:job.cores])
    torch.set_num_threads(1)
    batches = CONTENDERS[job.contender](job)
    next(batches)
    first_batch_s, seen, begun = time.time() - started, job.photos_per_batch, 0.0
    for size in batches:
        seen += size
        if not begun and seen >= FIRST_PHOTOS:
            begun, cpu_s, before = time.perf_counter(), tree_cpu_s(), seen
        elif begun and seen - before >= job.measured_photos:
            break
    num_photos, duration_s = seen - before, time.perf_counter() - begun
    sender.send({"images_per_s": num_photos / duration_s, "cpu_ms_per_image": 1000 * (tree_cpu_s() - cpu_s) / num_photos,
                 "first_batch_s": first_batch_s})
    sender.close()
    batches.close()
    if ray.is_initialized():
        ray.shutdown()


def _limit(job: Job) -> Generator[int]:
    """The bare loop, a process for each core; only the sizes of batches come back."""
    context = multiprocessing.get_context("spawn")
    done: Any = context.Queue()
    workers = [context.Process(target=_loop, args=(job, rank, done), daemon=True) for rank in range(job.cores)]
    for worker in workers:
        worker.start()
    try:
        while True:
            yield done.get()
    finally:
        for worker in workers:
            worker.kill()


def _loop(job: Job, rank: int, done: Any) -> None:
    torch.set_num_threads(1)
    builder = PhotoBuilder(job.image_size)
    files = [file for uri in job.shards for file in read_manifest(uri).shard_uris(uri)]
    for file in cycle(files[rank::job.cores] or files):
        shard = pq.ParquetFile(file)
        for group in range(shard.num_row_groups):
            photos = [photo.as_py() for photo in shard.read_row_group(group)["image"]]
            for start in range(0, len(photos), job.photos_per_batch):
                done.put(len(builder.batch(photos[start:start + job.photos_per_batch])))


def _stream(job: Job, weights: tuple[float | None, ...] = (None, None, None)) -> Generator[int]:
    """Our stream, received in this process as a training worker does. Ray has CPUs for `cores` tasks and no others."""
    ray.init(address="local", num_cpus=job.cores, include_dashboard=False, log_to_driver=False, object_store_memory=2_000_000_000)
    mixture = read_mixture(zip(job.shards, weights, strict=True), seed=0, num_lanes=1)
    builder = PhotoBuilder(job.image_size)
    for packed in BatchStream(mixture, [0], mixture.start(job.photos_per_batch), builder, num_tasks=job.cores, memory_mb=MEMORY_MB):
        yield len(builder.unpack(packed))


def _mixture(job: Job) -> Generator[int]:
    return _stream(job, (3.0, 2.0, 1.0))


class _Files(torch.utils.data.Dataset):
    """Local files, each decoded and resized when it is asked for."""

    def __init__(self, job: Job):
        self.files, self.builder = sorted(Path(job.photos).iterdir()), PhotoBuilder(job.image_size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.builder.batch([self.files[index].read_bytes()])[0]


def _dataloader(job: Job) -> Generator[int]:
    """torch's DataLoader, shuffled, epoch after epoch."""
    loader = torch.utils.data.DataLoader(_Files(job), batch_size=job.photos_per_batch, shuffle=True, num_workers=job.cores,
                                         persistent_workers=True)
    while True:
        for batch in loader:
            yield len(batch)


CONTENDERS: dict[str, Callable[[Job], Generator[int]]] = {
    "limit": _limit, "stream": _stream, "mixture": _mixture, "dataloader": _dataloader}
