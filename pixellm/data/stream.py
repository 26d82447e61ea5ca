"""Shards to the rows of one training worker, epoch after epoch, in an order that only (seed, epoch) decides.

Ray Data reads: each worker runs a small dataset of its own whose tasks read row groups, so no block is handed out by chance as
`streaming_split` does. Which rows an epoch holds does not depend on the number of workers; a `DataPosition` names those already consumed,
so a run can be taken up by any number of workers without seeing a row twice in an epoch or missing one.
"""

import itertools
import json
import math
import queue
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import DataContext, Dataset, ExecutionResources, TaskPoolStrategy

from pixellm.data.schema import Row
from pixellm.data.shards import read_manifest
from pixellm.errors import ShardError
from pixellm.storage import join_uri, open_filesystem, run_parallel

READ_CPUS = 0.25
READ_TASKS_PER_WORKER = 2
# What one dataset reads; the first ones are smaller, so that the first batch comes early. It is read whole, one dataset ahead of the
# consumer: an executor that waits for its consumer spins, and took as much CPU time as the training itself (docs/log.md).
FIRST_BYTES, BYTES_PER_DATASET = 4 << 20, 64 << 20
UNITS_PER_DATASET = 32  # at most: each is a task, and a small training set would be read for many epochs ahead
CLOSE_TIMEOUT_S = 5.0
ROWS_PER_SLICE = 16
WHOLE_GROUPS_PER_WORKER = 8

T = TypeVar("T")


@dataclass(frozen=True)
class RowGroup:
    """One row group of one shard. `weight`: visits per epoch; `num_bytes` uncompressed."""

    uri: str
    index: int
    num_rows: int
    num_bytes: int
    weight: float = 1.0


@dataclass(frozen=True)
class ReadUnit:
    """What one task reads for one worker: rows `part`, `part + num_parts`, … of the shuffled row group, on visit `visit` of `epoch`."""

    group: RowGroup
    epoch: int
    visit: int
    part: int
    num_parts: int

    @property
    def num_rows_of_visit(self) -> int:
        """Rows that all workers together take; a fractional weight takes a random share on its last visit."""
        return round(min(1.0, self.group.weight - self.visit) * self.group.num_rows)


@dataclass(frozen=True)
class StreamedRow:
    """A row, its epoch, and its key there: `source/split/image_id`, with `#n` on a repeated visit."""

    row: Row
    epoch: int
    key: str


@dataclass
class DataPosition:
    """Rows consumed so far: `consumed[epoch]` holds the keys of each epoch that is not finished, from `first_epoch` on."""

    first_epoch: int = 0
    consumed: dict[int, set[str]] = field(default_factory=dict)

    def add(self, rows: Iterable[tuple[int, str]], rows_per_epoch: int) -> None:
        """Note (epoch, key) pairs; an epoch whose every row is consumed is forgotten."""
        for epoch, key in rows:
            self.consumed.setdefault(epoch, set()).add(key)
        while len(self.consumed.get(self.first_epoch, ())) >= rows_per_epoch:
            del self.consumed[self.first_epoch]
            self.first_epoch += 1

    def to_json(self) -> str:
        """Text for a checkpoint."""
        consumed = {str(epoch): sorted(keys) for epoch, keys in self.consumed.items()}
        return json.dumps({"first_epoch": self.first_epoch, "consumed": consumed})

    @classmethod
    def from_json(cls, text: str) -> "DataPosition":
        """What `to_json` wrote."""
        values = json.loads(text)
        return cls(values["first_epoch"], {int(epoch): set(keys) for epoch, keys in values["consumed"].items()})


def list_row_groups(folders: Iterable[tuple[str, float]]) -> list[RowGroup]:
    """Row groups of shard folders (uri, weight), from manifests and Parquet footers. Raises ShardError for a folder without manifest."""
    shards = [(join_uri(uri, shard.name), weight) for uri, weight in folders for shard in read_manifest(uri).shards]
    return [group for groups in run_parallel(_row_groups_of_shard, shards) for group in groups]


def _row_groups_of_shard(uri: str, weight: float) -> list[RowGroup]:
    filesystem, path = open_filesystem(uri)
    metadata = pq.read_metadata(path, filesystem=filesystem)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return [RowGroup(uri, index, group.num_rows, group.total_byte_size, weight) for index, group in enumerate(groups)]


def count_rows_per_epoch(groups: Iterable[RowGroup]) -> int:
    """Rows that all workers together see in an epoch."""
    return sum(unit.num_rows_of_visit for unit in plan_epoch(list(groups), seed=0, epoch=0, rank=0, num_workers=1))


def plan_epoch(groups: list[RowGroup], seed: int, epoch: int, rank: int, num_workers: int) -> list[ReadUnit]:
    """What worker `rank` reads in `epoch`, in order. Many row groups are dealt out whole; few are read by all, each worker its own rows."""
    visits = [(group, visit) for group in groups for visit in range(math.ceil(group.weight))]
    order = np.random.default_rng([seed, epoch]).permutation(len(visits))
    are_many = len(visits) >= WHOLE_GROUPS_PER_WORKER * num_workers
    part, num_parts = (0, 1) if are_many else (rank, num_workers)
    return [ReadUnit(visits[i][0], epoch, visits[i][1], part, num_parts) for i in (order[rank::num_workers] if are_many else order)]


def read_unit(unit: ReadUnit, seed: int, consumed: set[str]) -> pa.Table:
    """The rows of `unit` in their shuffled order, without those in `consumed`, with the columns `epoch` and `key` added.

    The ids are read first, so a row group that is consumed whole costs three small columns.
    """
    filesystem, path = open_filesystem(unit.group.uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        ids = file.read_row_group(unit.group.index, columns=["source", "split", "image_id"])
        suffix = f"#{unit.visit}" if unit.visit else ""
        keys = pc.binary_join_element_wise(*(ids.column(name).cast(pa.string()) for name in ("source", "split", "image_id")), "/")
        keys = pc.binary_join_element_wise(keys, pa.scalar(suffix), "")
        entropy = [seed, unit.epoch, unit.visit, zlib.crc32(unit.group.uri.rsplit("/", 1)[-1].encode()), unit.group.index]
        order = np.random.default_rng(entropy).permutation(unit.group.num_rows)[:unit.num_rows_of_visit][unit.part::unit.num_parts]
        if consumed:
            order = np.array([i for i in order if keys[int(i)].as_py() not in consumed], dtype=np.int64)
        if not len(order):
            empty = file.schema_arrow.empty_table()
            return empty.append_column("epoch", pa.array([], pa.int64())).append_column("key", pa.array([], pa.string()))
        table = file.read_row_group(unit.group.index).take(order)
    return table.append_column("epoch", pa.array([unit.epoch] * len(order), pa.int64())).append_column("key", keys.take(order))


class RowStream:
    """Rows of worker `rank` without end: the rest of the epochs that `position` names, then one epoch after another."""

    def __init__(self, groups: list[RowGroup], seed: int, rank: int, num_workers: int, position: DataPosition | None = None):
        position = position or DataPosition()
        if (num_rows := count_rows_per_epoch(groups)) < num_workers:
            raise ShardError(f"found {num_rows} rows for {num_workers} workers; each needs at least one: give more data or fewer workers")
        self.groups, self.seed, self.rank, self.num_workers = groups, seed, rank, num_workers
        self.first_epoch, self.consumed = position.first_epoch, dict(position.consumed)

    def __iter__(self) -> Iterator[StreamedRow]:
        portions = self._portions()
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            ahead = reader.submit(self._read, next(portions))
            while True:
                blocks, ahead = ahead.result(), reader.submit(self._read, next(portions))
                while blocks:
                    yield from self._rows_of(ray.get(blocks.popleft()))

    @staticmethod
    def _rows_of(table: pa.Table) -> Iterator[StreamedRow]:
        for start in range(0, table.num_rows, ROWS_PER_SLICE):
            for row in table.slice(start, ROWS_PER_SLICE).to_pylist():
                yield StreamedRow(epoch=row.pop("epoch"), key=row.pop("key"), row=row)

    def _portions(self) -> Iterator[list[ReadUnit]]:
        """Units without end, in lists of `FIRST_BYTES`, then twice as much and so on up to `BYTES_PER_DATASET`; one unit at least."""
        units: list[ReadUnit] = []
        num_bytes, enough = 0, FIRST_BYTES
        for epoch in itertools.count(self.first_epoch):
            for unit in plan_epoch(self.groups, self.seed, epoch, self.rank, self.num_workers):
                units.append(unit)
                num_bytes += unit.group.num_bytes // unit.num_parts
                if num_bytes >= enough or len(units) == UNITS_PER_DATASET:
                    yield units
                    units, num_bytes, enough = [], 0, min(2 * enough, BYTES_PER_DATASET)

    def _read(self, units: list[ReadUnit]) -> deque[ray.ObjectRef]:
        """Reads the units with a dataset of their own; tables in order."""
        return deque(self._build_dataset(units).to_arrow_refs())

    def _build_dataset(self, units: list[ReadUnit]) -> Dataset:
        """A dataset whose blocks are the units, in order."""
        seed = self.seed
        consumed_ref = ray.put({unit.epoch: self.consumed[unit.epoch] for unit in units if unit.epoch in self.consumed})

        def read(batch: dict[str, np.ndarray]) -> pa.Table:
            unit = units[int(batch["unit"][0])]
            return read_unit(unit, seed, ray.get(consumed_ref).get(unit.epoch, set()))

        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        num_bytes = sum(unit.group.num_bytes // unit.num_parts for unit in units)
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=READ_CPUS * READ_TASKS_PER_WORKER, object_store_memory=8 * max(num_bytes, BYTES_PER_DATASET))
        context.enable_progress_bars = False
        with DataContext.current(context):
            items = ray.data.from_items([{"unit": i} for i in range(len(units))], override_num_blocks=len(units))
            return items.map_batches(read, batch_size=1, num_cpus=READ_CPUS, compute=TaskPoolStrategy(size=READ_TASKS_PER_WORKER))


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
