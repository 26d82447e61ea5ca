"""Shards to the micro-batches of one training worker, without end. Ray Data tasks read, decode and collate; the worker only receives.

Each worker runs small datasets of its own, so no block is handed out by chance as `streaming_split` does: `pixellm.data.mixture` says which
row comes when. A portion is made by two of them. The first reads row groups, each once, encoded, into the object store; the second makes
micro-batches out of these, a window of a lane at a time. A portion is made whole, ahead of the consumer: an executor that waits for its
consumer spins, and took as much CPU time as the training itself (docs/log.md).
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import DataContext, Dataset, ExecutionResources, TaskPoolStrategy

from pixellm.data.manifest import Manifest, read_manifest
from pixellm.data.mixture import BATCHES_PER_WINDOW, DataPosition, Mixture, MixtureSet, RowGroup, Span
from pixellm.data.schema import Row
from pixellm.data.transport import from_table, to_table
from pixellm.errors import ShardError
from pixellm.storage import join_uri, open_filesystem, run_parallel

READ_CPUS = 0.25
PORTIONS_AHEAD = 2
FIRST_WINDOWS = 1  # of each lane, in the first portion: the first batch comes early; then twice as many, and so on
READ_ATTEMPTS, FIRST_PAUSE_S = 7, 1.0  # of an object that cannot be read; each pause is twice the one before: a minute in all
CLOSE_TIMEOUT_S = 5.0

T = TypeVar("T")
BatchT = TypeVar("BatchT", covariant=True)


@dataclass(frozen=True)
class StreamedRow:
    """A row, its epoch, and its key there: `source/split/image_id`, with `#n` on a repeated visit."""

    row: Row
    epoch: int
    key: str


class BatchBuilder(Protocol[BatchT]):
    """Makes micro-batches in a Ray task. Picklable; it is sent once, and kept by each process that runs such tasks."""

    def length(self, row: StreamedRow) -> int:
        """Something that grows with the padded length of the row; rows of like length are put together.

        Of what is stored only: a run that goes on under another configuration must find the same order.
        """
        ...

    def build(self, rows: list[StreamedRow]) -> BatchT:
        """One micro-batch. What is wrong with a row is told in the result, not raised."""
        ...


def read_mixture(folders: Iterable[tuple[str, float | None]], seed: int, num_lanes: int, epoch_rows: int | None = None) -> Mixture:
    """The mixture of shard folders (uri, weight), from manifests and Parquet footers. Raises ShardError for a folder without manifest."""
    sets = []
    for uri, weight in folders:
        manifest = read_manifest(uri)
        sets.append(MixtureSet(uri, tuple(list_row_groups(uri, manifest)), weight, ",".join(shard.sha256 for shard in manifest.shards)))
    return Mixture(sets, seed, num_lanes, epoch_rows)


def list_row_groups(uri: str, manifest: Manifest | None = None) -> list[RowGroup]:
    """Row groups of the shard folder `uri`, in its order. Raises ShardError for one without manifest."""
    shards = (manifest or read_manifest(uri)).shards
    return [group for groups in run_parallel(_row_groups_of_shard, ((join_uri(uri, shard.name),) for shard in shards)) for group in groups]


def _row_groups_of_shard(uri: str) -> list[RowGroup]:
    filesystem, path = open_filesystem(uri)
    metadata = pq.read_metadata(path, filesystem=filesystem)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return [RowGroup(uri, index, group.num_rows, group.total_byte_size) for index, group in enumerate(groups)]


def read_span(span: Span, seed: int) -> pa.Table:
    """The rows of `span` in its order, with the column `key` added.

    An object that cannot be read is tried `READ_ATTEMPTS` times. Raises ShardError with its name when it still cannot.
    """
    for attempt in range(READ_ATTEMPTS):
        try:
            filesystem, path = open_filesystem(span.group.uri)
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                table = file.read_row_group(span.group.index)
            break
        except (OSError, pa.ArrowInvalid) as error:
            if attempt == READ_ATTEMPTS - 1:
                raise ShardError(f"cannot read row group {span.group.index} of {span.group.uri} in {READ_ATTEMPTS} attempts: {error}; "
                                 "check the store, and the object with jobs.inspect_data") from None
            time.sleep(FIRST_PAUSE_S * 2**attempt)
    table = table.take(span.order(seed))
    parts = (table.column(name).cast(pa.string()) for name in ("source", "split", "image_id"))
    keys = pc.binary_join_element_wise(*parts, "/")
    return table.append_column("key", pc.binary_join_element_wise(keys, pa.scalar(f"#{span.visit}" if span.visit else ""), ""))


def build_window(builder: BatchBuilder[T], rows: list[StreamedRow], rows_per_batch: int, entropy: list[int], skip: int) -> list[T]:
    """The micro-batches of a window but the first `skip`: rows of like length together, the micro-batches in a random order."""
    rows = sorted(rows, key=builder.length)
    order = np.random.default_rng(entropy).permutation(len(rows) // rows_per_batch)[skip:]
    return [builder.build(rows[i * rows_per_batch:(i + 1) * rows_per_batch]) for i in order]


@dataclass(frozen=True)
class _Window:
    """`rows`: for each row the number of its span in the portion, and its place there."""

    lane: int
    number: int
    skip: int
    rows: list[tuple[int, int]]


class BatchStream(Generic[T]):
    """Micro-batches of the `lanes` of one worker from `position` on: one of each lane in turn, for ever.

    `memory_mb` bounds what waits in the object store, besides the row groups that are open: it holds a portion that is consumed and
    `PORTIONS_AHEAD`. A window of each lane is the least that a portion can be. `num_tasks` of `READ_CPUS` each run at a time for a portion.
    """

    def __init__(self, mixture: Mixture, lanes: Sequence[int], position: DataPosition, builder: BatchBuilder[T], num_tasks: int = 2,
                 memory_mb: float = 512):
        self.mixture, self.lanes, self.position, self.num_tasks = mixture, list(lanes), position, num_tasks
        self.portion_bytes = memory_mb * 1e6 / (1 + PORTIONS_AHEAD)
        self._builder = ray.put(builder)
        self._spans: dict[Span, ray.ObjectRef] = {}
        self._bytes_per_window = 0.0

    def __iter__(self) -> Iterator[T]:
        first, most = self.position.batches_per_lane // BATCHES_PER_WINDOW, FIRST_WINDOWS
        ahead: deque[Future[deque[ray.ObjectRef]]] = deque()
        # Row groups are read in order, by one thread; to begin a portion takes a while in which the cores can work for the one before it.
        with ThreadPoolExecutor(1, "read-ahead") as reader, ThreadPoolExecutor(PORTIONS_AHEAD, "collate-ahead") as collators:
            while True:
                while len(ahead) < PORTIONS_AHEAD:
                    count = self._windows_ahead(most)
                    made = reader.submit(self._make, first, count)
                    ahead.append(collators.submit(lambda made: self._collate(*made.result()), made))
                    first, most = first + count, 2 * count
                blocks = ahead.popleft().result()
                while blocks:
                    windows = [from_table(ray.get(blocks.popleft())) for _ in self.lanes]
                    for of_step in zip(*windows, strict=True):
                        yield from of_step

    def _windows_ahead(self, most: int) -> int:
        return max(1, min(most, int(self.portion_bytes / max(self._bytes_per_window * len(self.lanes), 1))))

    def _make(self, first: int, count: int) -> "tuple[list[_Window], list[ray.ObjectRef], list[Span]]":
        """Windows `first` to `first + count - 1` of each lane, lanes of a window side by side; their row groups, and what these are."""
        spans: dict[Span, int] = {}
        windows = [self._plan(lane, number, spans) for number in range(first, first + count) for lane in self.lanes]
        ordered = list(spans)
        self._read([span for span in ordered if span not in self._spans])
        tables = [self._spans[span] for span in ordered]
        for number, place in (row for window in windows for row in window.rows):
            if place + 1 == ordered[number].stop - ordered[number].start:  # its last row; until then a set of small weight may pause
                self._spans.pop(ordered[number], None)
        return windows, tables, ordered

    def _plan(self, lane: int, number: int, spans: dict[Span, int]) -> _Window:
        batch = self.position.rows_per_batch
        rows = self.mixture.rows(lane, number * BATCHES_PER_WINDOW * batch, (number + 1) * BATCHES_PER_WINDOW * batch)
        skip = max(0, self.position.batches_per_lane - number * BATCHES_PER_WINDOW)
        return _Window(lane, number, skip, [(spans.setdefault(span, len(spans)), place) for span, place in rows])

    def _read(self, spans: list[Span]) -> None:
        seed = self.mixture.seed

        def read(batch: dict[str, np.ndarray]) -> pa.Table:
            return read_span(spans[int(batch["item"][0])], seed)

        self._spans |= dict(zip(spans, self._run(read, len(spans)), strict=True))

    def _collate(self, windows: list[_Window], tables: list[ray.ObjectRef], spans: list[Span]) -> deque[ray.ObjectRef]:
        """A table for each window."""
        builder, batch, seed = self._builder, self.position.rows_per_batch, self.mixture.seed

        def collate(items: dict[str, np.ndarray]) -> pa.Table:
            window = windows[int(items["item"][0])]
            rows = read_rows({number: (ray.get(tables[number]), spans[number].epoch) for number, _ in window.rows}, window.rows)
            built = build_window(kept(builder), rows, batch, [seed, window.lane, window.number], window.skip)
            return to_table(built)

        refs = self._run(collate, len(windows))
        sizes = ray.experimental.get_object_locations(refs)
        self._bytes_per_window = max((each["object_size"] or 0 for each in sizes.values()), default=0)
        return deque(refs)

    def _run(self, function: Callable[[dict[str, np.ndarray]], pa.Table], num_items: int) -> list[ray.ObjectRef]:
        """`function` for each number of an item, in Ray Data tasks; the tables in order."""
        if not num_items:
            return []
        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=READ_CPUS * self.num_tasks)
        context.enable_progress_bars = False
        with DataContext.current(context):
            items: Dataset = ray.data.from_items([{"item": i} for i in range(num_items)], override_num_blocks=num_items)
            made = items.map_batches(function, batch_size=1, num_cpus=READ_CPUS, compute=TaskPoolStrategy(size=self.num_tasks))
            return made.to_arrow_refs()


def read_rows(tables: dict[int, tuple[pa.Table, int]], places: Iterable[tuple[int, int]]) -> list[StreamedRow]:
    """Rows out of tables (with their epoch) by (number of the table, place in it)."""
    rows = []
    for number, place in places:
        table, epoch = tables[number]
        row: Any = table.slice(place, 1).to_pylist()[0]
        rows.append(StreamedRow(key=row.pop("key"), epoch=epoch, row=row))
    return rows


_kept: dict[ray.ObjectRef, Any] = {}


def kept(ref: ray.ObjectRef) -> Any:
    """What `ref` stands for, unpickled once in each process: a tokenizer takes longer than a micro-batch."""
    if ref not in _kept:
        _kept.clear()
        _kept[ref] = ray.get(ref)
    return _kept[ref]


class Prefetcher(Generic[T]):
    """Runs an iterator in a thread of its own, `depth` items ahead. An error there is raised here, in its place."""

    def __init__(self, items: Iterable[T], depth: int):
        self._queue: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            is_item, value = self._queue.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value

    def close(self) -> None:
        """Stop reading ahead."""
        self._stopped.set()
        self._thread.join(timeout=CLOSE_TIMEOUT_S)

    def _fill(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put((True, item)):
                    return
            self._put((False, None))
        except BaseException as error:  # handed to the consumer
            self._put((False, error))

    def _put(self, entry: tuple[bool, Any]) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
