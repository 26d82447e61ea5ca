"""A part: the rows of about one row group, built from the records of a plan, checked, counted, and ready to be written.

Which records make which part, and which parts make which shard, follows from the plan and the options alone. Nothing here knows Ray.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pixellm.data.schema import ROW_SCHEMA, SKIP_REASONS, RejectedRow, Row, validate_row
from pixellm.data.shrink import shrink_row
from pixellm.data.sources.agreement import common_way
from pixellm.data.sources.plan import PhotoRecord, RowBuilder
from pixellm.errors import RowError, ShardError, StorageError, TooManyRejectedError
from pixellm.settings import Seed, StrictModel
from pixellm.storage import read_bytes

NUM_READ_AHEAD = 16  # photos in flight: hides the latency of an object store
MB = 1_000_000


class ShardOptions(StrictModel):
    """How rows become shards. Sizes are those that the dataset's files have: rows that `max_side` makes smaller make smaller shards."""

    shard_size_mb: float = Field(384, gt=0, description="about the size of a shard; a writer holds one in memory")
    row_group_mb: float = Field(32, gt=0, description="about the size of a row group, the unit of reading; a reader holds one in memory")
    max_side: int | None = Field(None, gt=0, description="larger photos, and their masks, are resized to it; none: stored as shipped")
    max_rejected_share: float = Field(0.05, ge=0, le=1, description="above it, of the photos or of the regions (questions), the job stops")
    seed: Seed = Field(0, description="of the shuffle")

    @property
    def parts_per_shard(self) -> int:
        """Row groups of a shard."""
        return max(1, round(self.shard_size_mb / self.row_group_mb))


class Counts(StrictModel):
    """What was kept, what was set aside, and the seconds it took: waiting for photos, building (rasterising and encoding), checking."""

    num_rows: int = 0
    num_regions: int = 0
    num_conversations: int = 0
    num_targets: int = 0
    num_mask_questions: int = 0
    num_rejected_rows: int = 0
    num_rejected_annotations: int = 0
    rejected_by_reason: dict[str, int] = Field(default_factory=dict)
    read_s: float = 0.0
    build_s: float = 0.0
    check_s: float = 0.0
    write_s: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        sums = {name: getattr(self, name) + getattr(other, name) for name in Counts.model_fields if name != "rejected_by_reason"}
        reasons = Counter(self.rejected_by_reason) + Counter(other.rejected_by_reason)
        return Counts(**sums, rejected_by_reason=dict(sorted(reasons.items())))

    def scaled(self, factor: float) -> "Counts":
        """The counts of `factor` times as many photos of the same kind, in whole numbers."""
        values = {name: round(value * factor) if isinstance(value, int) else value for name, value in self if name != "rejected_by_reason"}
        return Counts(**values, rejected_by_reason={reason: round(count * factor) for reason, count in self.rejected_by_reason.items()})

    def time_shares(self) -> str:
        """ "12.3: read 3 %, rasterise and encode 61 %, check 30 %, write 6 %"."""
        seconds = {"read": self.read_s, "rasterise and encode": self.build_s, "check": self.check_s, "write": self.write_s}
        total_s = sum(seconds.values())
        return f"{total_s:.1f}: " + ", ".join(f"{name} {100 * each / max(total_s, 1e-9):.0f} %" for name, each in seconds.items())

    @classmethod
    def of(cls, rows: Sequence[Row], rejected: Sequence[RejectedRow], **seconds: float) -> "Counts":
        """Of rows and of what was set aside beside them."""
        conversations = [conversation for row in rows for conversation in row["conversations"]]
        num_annotations = sum(each.annotation_id is not None for each in rejected)
        return cls(num_rows=len(rows), num_regions=sum(len(row["regions"]) for row in rows), num_conversations=len(conversations),
                   num_targets=sum(len(each["targets"]) for each in conversations),
                   num_mask_questions=sum(each["task"] != "vqa" for each in conversations),
                   num_rejected_rows=len(rejected) - num_annotations, num_rejected_annotations=num_annotations,
                   rejected_by_reason=dict(Counter(each.reason for each in rejected)), **seconds)

    def check_share(self, max_share: float, counted: Literal["regions", "questions"] = "regions") -> None:
        """Raise TooManyRejectedError where too many of the photos were set aside, or of what an annotation is `counted` as.

        Photos that were set aside for one of `SKIP_REASONS` are not counted.
        """
        num_bad_rows = self.num_rejected_rows - sum(self.rejected_by_reason.get(reason, 0) for reason in SKIP_REASONS)
        num_kept = self.num_regions if counted == "regions" else self.num_conversations
        for what, num_rejected, num in (("photos", num_bad_rows, self.num_rows), (counted, self.num_rejected_annotations, num_kept)):
            if num_rejected > max_share * (num_rejected + num):
                reasons = dict(Counter(self.rejected_by_reason).most_common())
                raise TooManyRejectedError(f"{num_rejected} of {num_rejected + num} {what} were set aside, above "
                                           f"max_rejected_share={max_share:g}: {reasons}; see rejected.jsonl in the output folder")

    def check(self, max_share: float, counted: Literal["regions", "questions"] = "regions") -> None:
        """Raise for a set that cannot be trained on: TooManyRejectedError of `check_share`; ShardError without a row, or where no question
        that asks for masks has one: what such a set teaches is that nothing is ever there."""
        self.check_share(max_share, counted)
        if not self.num_rows:
            raise ShardError(f"no photo becomes a row; set aside: {self.rejected_by_reason or 'none'}")
        if self.num_mask_questions and not self.num_targets:
            raise ShardError(f"none of the {self.num_mask_questions} questions that ask for masks has a target, so all answers say that "
                             f"nothing is there; {self.num_regions} regions were kept. Where each annotation is a crowd (`iscrowd`), "
                             "its masks are only ignored: write 0 for what marks one thing")


def check_set(counts: Counts, rejected: Iterable[RejectedRow], max_share: float, counted: Literal["regions", "questions"]) -> None:
    """Raise what `Counts.check` raises, with the way in which the masks of the set disagree with their boxes where it is one."""
    try:
        counts.check(max_share, counted)
    except (TooManyRejectedError, ShardError) as error:
        first = next((f"the first: {each.detail}" for each in rejected if isinstance(error, ShardError)), None)
        raise type(error)(". ".join(filter(None, (str(error), first, common_way(rejected))))) from None


@dataclass(frozen=True)
class Part:
    """`rows` has ROW_SCHEMA."""

    rows: pa.Table
    counts: Counts
    rejected: list[RejectedRow]


def shuffle_order(seed: int, keys: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """Indices, int64 (N,), of the keys (source, split, image_id) in shuffled order: it depends on the seed and the set of keys only."""
    places = [hashlib.sha256(repr((seed, *key)).encode()).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=places.__getitem__), dtype=np.int64)


def cut_parts(num_bytes: Iterable[int], options: ShardOptions) -> list[slice]:
    """Slices of rows with these sizes, each of `row_group_mb` or the little more that its last row brings."""
    slices, start, size = [], 0, 0
    stop = 0
    for stop, each in enumerate(num_bytes, start=1):
        size += each
        if size >= options.row_group_mb * MB:
            slices.append(slice(start, stop))
            start, size = stop, 0
    return slices + ([slice(start, stop)] if start < stop else [])


def build_part(records: pa.Table, builder: RowBuilder, source: str, max_side: int | None) -> Part:
    """The rows of `records` (RECORD_SCHEMA), read, built and checked one photo after the other. What is bad is set aside."""
    collected = RowCollector(max_side)
    for record, photo in _read_ahead(PhotoRecord(**each) for each in records.to_pylist()):
        began = time.monotonic()
        try:
            data = photo.result()
        except StorageError as error:
            collected.rejected.append(RejectedRow(record.image_id, source, "photo_unreadable", str(error)))
            continue
        finally:
            collected.read_s += time.monotonic() - began
        began = time.monotonic()
        built: list[Row | RejectedRow] = []
        try:
            built.extend(builder.build(record, data))
        except RowError as error:
            built.append(RejectedRow(record.image_id, source, error.reason, error.detail))
        except StorageError as error:
            built.append(RejectedRow(record.image_id, source, "file_unreadable", str(error)))
        except Exception as error:
            error.add_note(f"while the row of image {record.image_id} of {source} was built")
            raise
        collected.build_s += time.monotonic() - began
        for row in built:
            collected.add(row)
    return collected.to_part()


@dataclass
class RowCollector:
    """Rows while they are collected: each is checked, set aside where it is bad or its key came before, and brought to `max_side`."""

    max_side: int | None = None
    rows: list[Row] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    read_s: float = 0.0
    build_s: float = 0.0
    check_s: float = 0.0
    _keys: set[tuple[str, str, str]] = field(default_factory=set)

    def add(self, row: Row | RejectedRow) -> None:
        """Take a row, or note one that was set aside."""
        if isinstance(row, RejectedRow):
            self.rejected.append(row)
            return
        began = time.monotonic()
        try:
            if (key := row_key(row)) in self._keys:
                raise RowError("duplicate_id", f"{' '.join(key)} came before")
            validate_row(row)
            self.check_s += time.monotonic() - began
            began = time.monotonic()
            self.rows.append(shrink_row(row, self.max_side))
            self._keys.add(key)
            self.build_s += time.monotonic() - began
        except RowError as error:
            self.rejected.append(RejectedRow(row["image_id"], row["source"], error.reason, error.detail))

    def to_part(self) -> Part:
        """All that was collected."""
        counts = Counts.of(self.rows, self.rejected, read_s=self.read_s, build_s=self.build_s, check_s=self.check_s)
        return Part(pa.Table.from_pylist(self.rows, schema=ROW_SCHEMA), counts, self.rejected)


def row_key(row: Row) -> tuple[str, str, str]:
    """What is unique among the rows of a folder."""
    return row["source"], row["split"], row["image_id"]


def _read_ahead(records: Iterator[PhotoRecord]) -> Iterator[tuple[PhotoRecord, "Future[bytes]"]]:
    def read(record: PhotoRecord) -> bytes:
        return read_bytes(record.photo_uri) if record.photo_uri else b""

    with ThreadPoolExecutor(NUM_READ_AHEAD) as pool:
        pending: deque[tuple[PhotoRecord, Future[bytes]]] = deque()
        for record in records:
            pending.append((record, pool.submit(read, record)))
            if len(pending) == NUM_READ_AHEAD:
                yield pending.popleft()
        yield from pending
