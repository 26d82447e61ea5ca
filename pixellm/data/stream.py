"""Shards to the micro-batches of one training worker, without end. Ray Data tasks read, decode and collate; the worker only receives.

Each worker runs small datasets of its own, so no block is handed out by chance as `streaming_split` does: `pixellm.data.mixture` says which
row comes when. A portion is made by two of them. The first reads row groups, each once, encoded, into the object store; the second makes
micro-batches out of these, some windows of a lane at a time. A portion is made whole, ahead of the consumer: an executor that waits for its
consumer spins, and took as much CPU time as the training itself (docs/log.md).
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Dataset, ExecutionResources, TaskPoolStrategy

from pixellm.data.mixture import BATCHES_PER_WINDOW, DataPosition, Mixture, Span
from pixellm.data.spans import StreamedRow, read_rows, read_span
from pixellm.data.transport import from_table, to_table
from pixellm.memory import keep_freed_memory

READ_CPUS = 0.25
PORTIONS_AHEAD = 2
FIRST_WINDOWS = 1  # of each lane, in the first portion: the first batch comes early; then twice as many, and so on
CHUNKS_PER_TASK = 2  # of a portion, for each task that runs at a time: few, as each costs 15 ms; the next portion fills the end

T = TypeVar("T")
BatchT = TypeVar("BatchT", covariant=True)

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Portion:
    """Windows of each lane, as chunks: some windows of the first lane, as many of the next one, and so on; and their row groups."""

    chunks: list[list[_Window]]
    spans: list[Span]
    tables: list[ray.ObjectRef]


class BatchStream(Generic[T]):
    """Micro-batches of the `lanes` of one worker from `position` on: one of each lane in turn, for ever.

    `memory_mb` bounds what lies in the object store for it: the micro-batches of a portion that is consumed and of `PORTIONS_AHEAD`, and
    the row groups that these are made of or that later ones need. A window of each lane is the least that a portion can be: where
    `memory_mb` is too small even for that, the log says how much it takes. About `num_tasks` of `READ_CPUS` each run at a time, shared out
    among the portions: as many for each are more processes than a small node has cores; Ray ends those that idle and starts them again.
    """

    def __init__(self, mixture: Mixture, lanes: Sequence[int], position: DataPosition, builder: BatchBuilder[T], num_tasks: int = 2,
                 memory_mb: float = 512):
        keep_freed_memory()
        self.mixture, self.lanes, self.position, self.num_tasks = mixture, list(lanes), position, num_tasks
        self.memory_bytes = memory_mb * 1e6
        self._builder = ray.put(builder)
        self._spans: dict[Span, ray.ObjectRef] = {}
        self._bytes_per_window = 0.0
        self._opened_bytes = 0.0  # the most that row groups took which a portion left open: those it opens may be as many again
        self._warned = False

    def __iter__(self) -> Iterator[T]:
        first, count = self.position.batches_per_lane // BATCHES_PER_WINDOW, 0

        def plan_next() -> _Portion:
            nonlocal first, count
            first, count = first + count, self._windows_ahead(2 * count or FIRST_WINDOWS)
            return self._plan(first, count)

        # Row groups are read in order, by one thread; to begin a portion takes a while in which the cores can work for the one before it.
        with ThreadPoolExecutor(1, "read-ahead") as reader, ThreadPoolExecutor(PORTIONS_AHEAD, "collate-ahead") as collators:

            def begin() -> Future[deque[ray.ObjectRef]]:
                planned = reader.submit(plan_next)
                return collators.submit(lambda: self._collate(planned.result()))

            ahead = deque(begin() for _ in range(PORTIONS_AHEAD))
            while True:
                chunks = ahead.popleft().result()
                ahead.append(begin())
                while chunks:
                    of_lanes = [from_table(ray.get(chunks.popleft())) for _ in self.lanes]
                    for of_step in zip(*of_lanes, strict=True):
                        yield from of_step

    def _windows_ahead(self, most: int) -> int:
        """How many windows of each lane the next portion has: `most`, or as many as the memory holds."""
        encoded = self.mixture.mean_row_bytes * BATCHES_PER_WINDOW * self.position.rows_per_batch
        needed = len(self.lanes) * ((1 + PORTIONS_AHEAD) * self._bytes_per_window + PORTIONS_AHEAD * encoded)
        opened = self._opened_bytes = max(self._opened_bytes, sum(span.num_bytes for span in self._spans))
        if opened + needed > self.memory_bytes and not self._warned:
            self._warned = True
            logger.warning("stream_memory_mb is %.0f, but %d lanes need %.0f MB: %.0f for row groups that are open, %.0f for the least "
                           "that is read ahead; give that much, or prepare shards with a smaller row_group_mb", self.memory_bytes / 1e6,
                           len(self.lanes), (opened + needed) / 1e6, opened / 1e6, needed / 1e6)
        return max(1, min(most, int((self.memory_bytes - opened) / max(needed, 1))))

    def _plan(self, first: int, count: int) -> _Portion:
        """Windows `first` to `first + count - 1` of each lane. Reads the row groups that no earlier portion has read."""
        spans: dict[Span, int] = {}
        windows = [self._plan_window(lane, number, spans) for number in range(first, first + count) for lane in self.lanes]
        ordered = list(spans)
        self._read([span for span in ordered if span not in self._spans])
        tables = [self._spans[span] for span in ordered]
        for number, place in (row for window in windows for row in window.rows):
            if place + 1 == ordered[number].stop - ordered[number].start:  # its last row; until then a set of small weight may pause
                self._spans.pop(ordered[number], None)
        num_lanes = len(self.lanes)
        size = num_lanes * min(count, max(1, len(windows) // (CHUNKS_PER_TASK * self.num_tasks)))
        chunks = [windows[start:start + size][lane::num_lanes] for start in range(0, len(windows), size) for lane in range(num_lanes)]
        return _Portion(chunks, ordered, tables)

    def _plan_window(self, lane: int, number: int, spans: dict[Span, int]) -> _Window:
        batch = self.position.rows_per_batch
        rows = self.mixture.rows(lane, number * BATCHES_PER_WINDOW * batch, (number + 1) * BATCHES_PER_WINDOW * batch)
        skip = max(0, self.position.batches_per_lane - number * BATCHES_PER_WINDOW)
        return _Window(lane, number, skip, [(spans.setdefault(span, len(spans)), place) for span, place in rows])

    def _read(self, spans: list[Span]) -> None:
        seed = self.mixture.seed

        def read(batch: dict[str, np.ndarray]) -> pa.Table:
            return read_span(spans[int(batch["item"][0])], seed)

        self._spans |= dict(zip(spans, self._run(read, len(spans), self.num_tasks), strict=True))

    def _collate(self, portion: _Portion) -> deque[ray.ObjectRef]:
        """A table for each chunk."""
        builder, batch, seed = self._builder, self.position.rows_per_batch, self.mixture.seed

        def collate(items: dict[str, np.ndarray]) -> pa.Table:
            chunk = portion.chunks[int(items["item"][0])]
            numbers = sorted({number for window in chunk for number, _ in window.rows})
            tables = {number: (table, portion.spans[number].epoch)
                      for number, table in zip(numbers, ray.get([portion.tables[number] for number in numbers]), strict=True)}
            return to_table([built for window in chunk for built in build_window(
                kept(builder), read_rows(tables, window.rows), batch, [seed, window.lane, window.number], window.skip)])

        refs = self._run(collate, len(portion.chunks), -(-self.num_tasks // PORTIONS_AHEAD))
        sizes = ray.experimental.get_object_locations(refs)
        self._bytes_per_window = max(((sizes[ref]["object_size"] or 0) / len(chunk)
                                      for ref, chunk in zip(refs, portion.chunks, strict=True)), default=0)
        return deque(refs)

    def _run(self, function: Callable[[dict[str, np.ndarray]], pa.Table], num_items: int, num_tasks: int) -> list[ray.ObjectRef]:
        """`function` for each number of an item, `num_tasks` Ray Data tasks at a time; the tables in order."""
        if not num_items:
            return []
        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=READ_CPUS * num_tasks)
        context.enable_progress_bars = False
        with DataContext.current(context):
            items: Dataset = ray.data.from_items([{"item": i} for i in range(num_items)], override_num_blocks=num_items)
            tasks = TaskPoolStrategy(size=min(num_tasks, num_items))
            made = items.map_batches(function, batch_size=1, num_cpus=READ_CPUS, compute=tasks)
            return made.to_arrow_refs()


_kept: dict[ray.ObjectRef, Any] = {}


def kept(ref: ray.ObjectRef) -> Any:
    """What `ref` stands for, unpickled once in each process: a tokenizer takes longer than a micro-batch."""
    if ref not in _kept:
        keep_freed_memory()
        _kept.clear()
        _kept[ref] = ray.get(ref)
    return _kept[ref]
