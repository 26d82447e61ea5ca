"""Writes rows as shuffled Parquet shards beside a manifest, and what was set aside beside them. Photos stay encoded.

The shuffle needs no memory for the dataset: rows are spilled to local disk into parts by a hash of (seed, row id), and each part is then
sorted by that hash. So the order depends on the rows and the seed only, not on the order in which they come.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pixellm.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, SourceInfo, read_manifest, write_manifest
from pixellm.data.schema import ROW_SCHEMA, SKIP_REASONS, RejectedRow, Row, validate_row
from pixellm.errors import RowError, ShardError, StorageError, TooManyRejectedError
from pixellm.settings import StrictModel
from pixellm.storage import delete, join_uri, list_files, open_filesystem, read_bytes, run_parallel, write_bytes

__all__ = ["Manifest", "ShardOptions", "read_manifest", "verify_checksums", "write_shards"]

REJECTED_NAME = "rejected.jsonl"
NUM_SPILL_PARTS = 64
SPILL_BATCH_BYTES = 1 << 20
MIN_ROWS_TO_JUDGE = 1000  # before this many rows the share of rejected ones says too little to stop early
MB = 1_000_000
PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["source", "split", "license"],
                                   "write_statistics": ["image_id", "source", "split"]}  # none of the photos: they are large and unique


class ShardOptions(StrictModel):
    """How rows become shards."""

    shard_size_mb: float = Field(384, gt=0, description="a shard is closed when it has reached this size")
    row_group_mb: float = Field(32, gt=0, description="unit of reading; a reader holds one in memory")
    max_rejected_share: float = Field(0.05, ge=0, le=1, description="above it, of the photos or of the annotations, the job stops")
    seed: int = Field(0, description="of the shuffle")


def write_shards(rows: Iterable[Row | RejectedRow], output_uri: str, options: ShardOptions, sources: Iterable[SourceInfo] = ()) -> Manifest:
    """Validate `rows`, shuffle them and write them to the folder `output_uri`; the manifest comes last.

    A row that fails `validate_row`, or whose (source, split, image_id) came before, is set aside with its reason like a RejectedRow. All of
    these lie in `rejected.jsonl`. Earlier shards there are replaced as a whole, but only once all rows have been read.
    Raises TooManyRejectedError above `max_rejected_share` and ShardError for no rows: `rejected.jsonl` is written, the earlier shards stay.
    """
    with tempfile.TemporaryDirectory(prefix="pixellm-shards-") as folder:
        spill, rejected = _Spill(Path(folder), options.seed), _Rejected(Path(folder) / REJECTED_NAME)
        try:
            _read_all(rows, spill, rejected, options)
            if not spill.num_rows:
                raise ShardError(f"no row to write to {output_uri}; set aside: {dict(rejected.by_reason) or 'none'}")
        except (TooManyRejectedError, ShardError):
            write_bytes(join_uri(output_uri, REJECTED_NAME), rejected.close())
            raise
        _delete_earlier(output_uri)
        write_bytes(join_uri(output_uri, REJECTED_NAME), rejected.close())
        shards = list(_write_files(spill.read_sorted(), output_uri, options))
        manifest = Manifest(
            num_rows=spill.num_rows, num_regions=spill.num_regions, num_conversations=spill.num_conversations,
            num_targets=spill.num_targets, num_bytes=sum(shard.num_bytes for shard in shards), num_rejected_rows=rejected.num_rows,
            num_rejected_annotations=rejected.num_annotations, rejected_by_reason=dict(sorted(rejected.by_reason.items())),
            seed=options.seed, sources=list(sources), shards=shards,
        )
        write_manifest(output_uri, manifest)
        return manifest


def verify_checksums(uri: str) -> Manifest:
    """Read every shard of the folder and compare it with the manifest. Raises ShardError for one that differs."""
    manifest = read_manifest(uri)
    for shard, shard_uri in zip(manifest.shards, manifest.shard_uris(uri), strict=True):
        sha256 = hashlib.sha256(read_bytes(shard_uri)).hexdigest()
        if sha256 != shard.sha256:
            raise ShardError(f"{shard_uri} has checksum {sha256[:12]}, the manifest says {shard.sha256[:12]}; prepare the data again")
    return manifest


def _read_all(rows: Iterable[Row | RejectedRow], spill: "_Spill", rejected: "_Rejected", options: ShardOptions) -> None:
    seen: set[tuple[str, str, str]] = set()
    for row in rows:
        if isinstance(row, RejectedRow):
            rejected.add(row)
        else:
            try:
                key = (row["source"], row["split"], row["image_id"])
                if key in seen:
                    raise RowError("duplicate_id", f"{' '.join(key)} came before")
                validate_row(row)
                seen.add(key)
                spill.add(row)
            except RowError as error:
                rejected.add(RejectedRow(row["image_id"], row["source"], error.reason, error.detail))
        if spill.num_rows + rejected.num_rows >= MIN_ROWS_TO_JUDGE:
            rejected.check_share(spill, options.max_rejected_share)
    rejected.check_share(spill, options.max_rejected_share)
    spill.finish()


class _Spill:
    """Rows on local disk, in `NUM_SPILL_PARTS` Arrow files by the first bits of their place in the shuffle."""

    def __init__(self, folder: Path, seed: int):
        self._folder, self._seed = folder, seed
        self._waiting: dict[int, list[Row]] = {}
        self._waiting_bytes: Counter[int] = Counter()
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self.num_rows = self.num_regions = self.num_conversations = self.num_targets = 0

    def add(self, row: Row) -> None:
        part = self._place(row)[0] * NUM_SPILL_PARTS >> 8
        self._waiting.setdefault(part, []).append(row)
        self._waiting_bytes[part] += _row_bytes(row)
        if self._waiting_bytes[part] >= SPILL_BATCH_BYTES:
            self._flush(part)
        self.num_rows += 1
        self.num_regions += len(row["regions"])
        self.num_conversations += len(row["conversations"])
        self.num_targets += sum(len(conversation["targets"]) for conversation in row["conversations"])

    def finish(self) -> None:
        for part in list(self._waiting):
            self._flush(part)
        for writer in self._writers.values():
            writer.close()

    def read_sorted(self) -> Iterator[Row]:
        for part in sorted(self._writers):
            with pa.OSFile(str(self._path(part))) as file, pa.ipc.open_stream(file) as reader:
                rows = reader.read_all().to_pylist()
            yield from sorted(rows, key=self._place)

    def _place(self, row: Row) -> bytes:
        return hashlib.sha256(repr((self._seed, row["source"], row["split"], row["image_id"])).encode()).digest()

    def _flush(self, part: int) -> None:
        if part not in self._writers:
            self._writers[part] = pa.ipc.new_stream(str(self._path(part)), ROW_SCHEMA)
        self._writers[part].write_table(pa.Table.from_pylist(self._waiting.pop(part), schema=ROW_SCHEMA))
        self._waiting_bytes[part] = 0

    def _path(self, part: int) -> Path:
        return self._folder / f"part-{part:02d}.arrow"


class _Rejected:
    """`rejected.jsonl` while it grows, and its counts."""

    def __init__(self, path: Path):
        self._path, self._file = path, path.open("w")
        self.by_reason: Counter[str] = Counter()
        self.num_rows = self.num_bad_rows = self.num_annotations = 0

    def add(self, rejected: RejectedRow) -> None:
        self._file.write(json.dumps(asdict(rejected)) + "\n")
        self.by_reason[rejected.reason] += 1
        self.num_rows += rejected.annotation_id is None
        self.num_annotations += rejected.annotation_id is not None
        self.num_bad_rows += rejected.annotation_id is None and rejected.reason not in SKIP_REASONS

    def close(self) -> bytes:
        self._file.close()
        return self._path.read_bytes()

    def check_share(self, spill: _Spill, max_share: float) -> None:
        counts = (("rows", self.num_bad_rows, spill.num_rows), ("annotations", self.num_annotations, spill.num_regions))
        for what, num_rejected, num_kept in counts:
            if num_rejected > max_share * (num_rejected + num_kept):
                raise TooManyRejectedError(
                    f"{num_rejected} of {num_rejected + num_kept} {what} were set aside, above max_rejected_share={max_share:g}: "
                    f"{dict(self.by_reason.most_common())}; see {REJECTED_NAME} in the output folder"
                )


class _HashingSink:
    """A file that counts and hashes what goes through it."""

    def __init__(self, stream: Any):
        self._stream, self._hash = stream, hashlib.sha256()
        self.num_bytes, self.closed = 0, False

    def write(self, data: Any) -> int:
        self._stream.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.num_bytes

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _write_files(rows: Iterator[Row], output_uri: str, options: ShardOptions) -> Iterator[ShardInfo]:
    filesystem, folder = open_filesystem(output_uri)
    groups = _in_row_groups(rows, int(options.row_group_mb * MB))
    group = next(groups, None)
    number = 0
    while group:
        name = f"shard-{number:05d}.parquet"
        num_rows = 0
        try:
            with filesystem.open_output_stream(f"{folder}/{name}") as stream:
                sink = _HashingSink(stream)
                with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), ROW_SCHEMA, **PARQUET_OPTIONS) as writer:
                    while group and (not num_rows or sink.num_bytes < options.shard_size_mb * MB):
                        writer.write_table(pa.Table.from_pylist(group, schema=ROW_SCHEMA), row_group_size=len(group))
                        num_rows += len(group)
                        group = next(groups, None)
        except OSError as error:
            where = join_uri(output_uri, name)
            raise StorageError(f"cannot write {where}: {error}; run the job again, until then the folder is refused") from error
        yield ShardInfo(name=name, num_rows=num_rows, num_bytes=sink.num_bytes, sha256=sink.sha256())
        number += 1


def _in_row_groups(rows: Iterator[Row], max_bytes: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    num_bytes = 0
    for row in rows:
        group.append(row)
        num_bytes += _row_bytes(row)
        if num_bytes >= max_bytes:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _row_bytes(row: Row) -> int:
    """About what the row takes: the photo and the masks; text and numbers are small beside them."""
    return len(row["image"]) + sum(len(region["rle_counts"]) + 64 for region in row["regions"]) + 256


def _delete_earlier(output_uri: str) -> None:
    """The manifest first: from then on the folder is refused, whatever happens. Files that are not ours stay."""
    earlier = [uri for uri in list_files(output_uri) if (name := uri.rpartition("/")[2]) == REJECTED_NAME or name.startswith("shard-")]
    delete(join_uri(output_uri, MANIFEST_NAME))
    run_parallel(delete, ((uri,) for uri in earlier))
