"""Which row comes when: several sets of shards, mixed row by row by weight, in an order that only (seed, epoch) decides.

An epoch is cut into a fixed number of lanes, one for each micro-batch of an optimiser step. A lane is an endless sequence of rows, epoch
after epoch; step n takes the next rows of every lane. Workers share the lanes out among them, so what a step trains on does not depend on
how many there are, and where a run stands is one number. Plain numbers: nothing is read here.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np

from pixellm.errors import ConfigError, ShardError

BATCHES_PER_WINDOW = 4  # rows of so many micro-batches of a lane are ordered by length before they are cut


@dataclass(frozen=True)
class RowGroup:
    """One row group of one shard; `num_bytes` uncompressed."""

    uri: str
    index: int
    num_rows: int
    num_bytes: int


@dataclass(frozen=True)
class MixtureSet:
    """The row groups of one shard folder. `fingerprint` names its content."""

    uri: str
    groups: tuple[RowGroup, ...]
    weight: float | None
    fingerprint: str

    @property
    def num_rows(self) -> int:
        """Rows on storage."""
        return sum(group.num_rows for group in self.groups)


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop - 1` of a row group in the order that visit `visit` of `epoch` shuffles it to."""

    group: RowGroup
    epoch: int
    visit: int
    start: int
    stop: int

    @property
    def num_bytes(self) -> float:
        """About what its rows take, encoded."""
        return self.group.num_bytes * (self.stop - self.start) / max(self.group.num_rows, 1)

    def order(self, seed: int) -> np.ndarray:
        """Their places in the row group, (stop - start,) int64."""
        name = hashlib.sha256(self.group.uri.rsplit("/", 1)[-1].encode()).digest()
        entropy = [seed, self.epoch, self.visit, int.from_bytes(name[:8]), self.group.index]
        return np.random.default_rng(entropy).permutation(self.group.num_rows)[self.start:self.stop]


@dataclass(frozen=True)
class DataPosition:
    """Where a run stands: every lane has given `batches_per_lane` micro-batches of `rows_per_batch` rows of `mixture`, a fingerprint."""

    num_lanes: int
    rows_per_batch: int
    mixture: str
    batches_per_lane: int = 0

    def to_json(self) -> str:
        """Text for a checkpoint."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DataPosition":
        """What `to_json` wrote. Raises ConfigError for anything else, such as the form of earlier versions."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            raise ConfigError(f"the checkpoint's data position is not one that this version reads: {text[:80]}; start another `run` with "
                              "model=URI of the exported checkpoint") from None


class Mixture:
    """Rows of several sets. With weights, an epoch holds them in these shares; without, every row once.

    An epoch has `epoch_rows` rows. By default the set with the most rows for its weight is seen exactly once, and the others as often as
    their share asks for: a set is repeated as a whole, and the last time a part of it, drawn anew each epoch.
    """

    def __init__(self, sets: Sequence[MixtureSet], seed: int, num_lanes: int, epoch_rows: int | None = None):
        weighted = [each for each in sets if each.weight is not None]
        if weighted and len(weighted) < len(sets):
            without = next(each.uri for each in sets if each.weight is None)
            raise ConfigError(f"{len(weighted)} of {len(sets)} sets of `data` have a weight and {without} has none; "
                              "give one to all or to none")
        self.sets, self.seed, self.num_lanes = tuple(sets), seed, num_lanes
        total = sum(each.num_rows for each in sets)
        weights = [each.weight if each.weight is not None else each.num_rows / max(total, 1) for each in sets]
        rows = epoch_rows or max((each.num_rows / weight for each, weight in zip(sets, weights, strict=True)), default=0) * sum(weights)
        self.rows_of_set = [round(rows * weight / sum(weights)) if each.groups else 0 for each, weight in zip(sets, weights, strict=True)]
        self.rows_per_epoch = sum(self.rows_of_set)
        if self.rows_per_epoch < num_lanes:
            raise ShardError(f"found {self.rows_per_epoch} rows an epoch for {num_lanes} micro-batches a step; each needs at least one: "
                             "give more data, or fewer workers or accumulation")
        self._rows_of_lane = self._share_out()
        content = [[each.fingerprint, rows] for each, rows in zip(sets, self.rows_of_set, strict=True)]
        self.fingerprint = hashlib.sha256(json.dumps([seed, BATCHES_PER_WINDOW, content]).encode()).hexdigest()[:16]
        self._lane = lru_cache(maxsize=4 * num_lanes)(self._build_lane)

    @property
    def mean_row_bytes(self) -> float:
        """About what a row of the mixture takes, encoded."""
        of_sets = [sum(group.num_bytes for group in each.groups) / max(each.num_rows, 1) for each in self.sets]
        return sum(size * rows for size, rows in zip(of_sets, self.rows_of_set, strict=True)) / self.rows_per_epoch

    def start(self, rows_per_batch: int) -> DataPosition:
        """The position before the first step."""
        return DataPosition(self.num_lanes, rows_per_batch, self.fingerprint)

    def check(self, position: DataPosition, rows_per_batch: int) -> None:
        """Raises ConfigError where `position` was reached with other data or other steps: rows would be missed or repeated."""
        now = self.start(rows_per_batch)
        for name, what in (("num_lanes", "micro-batches a step (workers x accumulation)"), ("rows_per_batch", "photos_per_micro_step"),
                           ("mixture", "data and seed, as a fingerprint")):
            before, after = getattr(position, name), getattr(now, name)
            if before != after:
                raise ConfigError(f"the run was begun with {before} as its {what}, the configuration says {after}; set it back, or start "
                                  "another `run`")

    def epoch_of(self, lane: int, row: int) -> tuple[int, int]:
        """The epoch of the `row`-th row of a lane, and its place there."""
        return divmod(row, int(self._rows_of_lane[:, lane].sum()))

    def rows(self, lane: int, start: int, stop: int) -> Iterator[tuple[Span, int]]:
        """Rows `start` to `stop - 1` of a lane: the span that each lies in, whole as the lane reads it, and its place in the span."""
        while start < stop:
            epoch, place = self.epoch_of(lane, start)
            which, before, spans = self._lane(lane, epoch)
            end = min(len(which), place + stop - start)
            for i in range(place, end):
                each = spans[which[i]]
                index = int(np.searchsorted(each.ends, before[i], side="right"))
                yield each.spans[index], int(before[i]) - (int(each.ends[index - 1]) if index else 0)
            start += end - place

    def _share_out(self) -> np.ndarray:
        """Rows that each lane has of each set in an epoch, (sets, lanes) int64: equal but for one, in all of them together too."""
        shares, turn = [], 0
        for rows in self.rows_of_set:
            whole, rest = divmod(rows, self.num_lanes)
            shares.append(whole + ((np.arange(self.num_lanes) - turn) % self.num_lanes < rest))
            turn = (turn + rest) % self.num_lanes
        return np.stack(shares).astype(np.int64)

    def _build_lane(self, lane: int, epoch: int) -> tuple[np.ndarray, np.ndarray, list["_SpansOfSet"]]:
        """Of each row of the lane in `epoch`: its set, how many of that set came before it; and the spans of each set.

        The k-th of a set's n rows stands at (k + u) / n of the epoch: the shares hold in every stretch of it, and no set runs dry early.
        """
        spans = [_SpansOfSet(self._spans(number, lane, epoch)) for number in range(len(self.sets))]
        counts = [int(each.ends[-1]) if len(each.ends) else 0 for each in spans]
        shift = np.random.default_rng([self.seed, epoch, lane]).random(len(spans))
        places = np.concatenate([(np.arange(count) + u) / max(count, 1) for count, u in zip(counts, shift, strict=True)])
        which = np.repeat(np.arange(len(spans)), counts)[order := np.argsort(places, kind="stable")]
        return which, np.concatenate([np.arange(count) for count in counts])[order], spans

    def _spans(self, number: int, lane: int, epoch: int) -> list[Span]:
        """The set's rows in the order of the epoch are row group after row group, visit after visit; the lane has an equal part of them."""
        first = int(self._rows_of_lane[number, :lane].sum())
        last, begun, found = first + int(self._rows_of_lane[number, lane]), 0, []
        for span in self._visits(number, epoch):
            start, stop = max(span.start, first - begun), min(span.stop, last - begun)
            if start < stop:
                found.append(Span(span.group, epoch, span.visit, start, stop))
            begun += span.stop
            if begun >= last:
                break
        return found

    def _visits(self, number: int, epoch: int) -> Iterator[Span]:
        """Row groups in the order of `epoch`, each as often as the share asks for; the last visit takes an equal part of each group."""
        groups, total, rows = self.sets[number].groups, self.sets[number].num_rows, self.rows_of_set[number]
        for visit in range(math.ceil(rows / total) if total else 0):
            taken = min(total, rows - visit * total)
            shuffled = [groups[i] for i in np.random.default_rng([self.seed, epoch, number, visit]).permutation(len(groups))]
            seen = list(accumulate((group.num_rows for group in shuffled), initial=0))
            for group, before, after in zip(shuffled, seen, seen[1:], strict=False):
                yield Span(group, epoch, visit, 0, after * taken // total - before * taken // total)


class _SpansOfSet:
    """Spans one after the other, and where each ends."""

    def __init__(self, spans: list[Span]):
        self.spans = spans
        self.ends = np.cumsum([span.stop - span.start for span in spans], dtype=np.int64)


def lanes_of_worker(rank: int, num_workers: int, num_lanes: int) -> range:
    """The lanes of a worker: equally many for all, but for one. Raises ConfigError where a worker would have none."""
    if num_workers > num_lanes:
        raise ConfigError(f"{num_lanes} micro-batches a step cannot be shared out among {num_workers} workers; take at most {num_lanes}")
    return range(rank * num_lanes // num_workers, (rank + 1) * num_lanes // num_workers)
