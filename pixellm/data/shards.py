"""Shard folders: parts become Parquet shards, and a manifest that is written last makes them the content of the folder.

Each preparation writes its shards into a folder of its own below the output, named by a fingerprint of all that decides their content.
So earlier shards stay readable until the new manifest takes their place, and a preparation that was killed finds its own again: beside
each shard, written after it, lies a note (JSON) with its checksum, its counts and what was set aside. The notes stay, so that a rerun
of a finished job writes only what is missing.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pixellm.data.manifest import FORMAT_VERSION, Manifest, ShardInfo, SourceInfo, read_manifest, write_manifest
from pixellm.data.parts import Counts, Part, RowCollector, ShardOptions, check_set, cut_parts, row_key, shuffle_order
from pixellm.data.schema import ROW_SCHEMA, RejectedRow, Row
from pixellm.errors import ShardError
from pixellm.settings import StrictModel
from pixellm.storage import delete, file_sizes, join_uri, list_files, open_output, read_bytes, run_parallel, write_bytes

__all__ = ["Manifest", "ShardOptions", "read_manifest", "verify_checksums", "write_shards"]

NOTE_SUFFIX = ".note.json"
REJECTED_NAME = "rejected.jsonl"
FOLDER_NAME = re.compile(r"shards-[0-9a-f]{12}")
PARQUET_OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["source", "split", "license"],
                                   "write_statistics": ["image_id", "source", "split"]}  # none of the photos: they are large and unique


class ShardNote(StrictModel):
    """What lies beside a shard. A shard of which no row was kept has no file and `shard` is None."""

    shard: ShardInfo | None
    counts: Counts
    rejected: list[RejectedRow]

    @classmethod
    def of(cls, shard: ShardInfo | None, parts: Sequence[Part]) -> "ShardNote":
        """Of a shard with these parts."""
        rejected = [each for part in parts for each in part.rejected]
        return cls(shard=shard, counts=sum((part.counts for part in parts), Counts()), rejected=rejected)


def write_shard(parts: Sequence[Part], output_uri: str, folder: str, number: int) -> ShardNote:
    """Shard `number` of `folder`, a row group per part, and then its note. Raises StorageError."""
    began = time.monotonic()
    name = f"{folder}/shard-{number:05d}"
    tables = [part.rows for part in parts if part.rows.num_rows]
    shard = _write_file(tables, output_uri, f"{name}.parquet") if tables else None
    note = ShardNote.of(shard, [*parts, Part(ROW_SCHEMA.empty_table(), Counts(write_s=time.monotonic() - began), [])])
    write_bytes(join_uri(output_uri, f"{name}{NOTE_SUFFIX}"), note.model_dump_json().encode())
    return note


def _write_file(tables: Sequence[pa.Table], output_uri: str, name: str) -> ShardInfo:
    with open_output(join_uri(output_uri, name)) as stream:
        sink = _HashingSink(stream)
        with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), ROW_SCHEMA, **PARQUET_OPTIONS) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=table.num_rows)
    num_rows = sum(table.num_rows for table in tables)
    return ShardInfo(name=name, num_rows=num_rows, num_bytes=sink.num_bytes, sha256=sink.sha256())


def read_notes(output_uri: str, folder: str) -> dict[int, ShardNote]:
    """Notes, by number, of the shards of `folder` that are there with the size that their note says."""
    files = {uri.rpartition("/")[2]: (uri, size) for uri, size in file_sizes(join_uri(output_uri, folder)).items()}
    names = [name for name in files if name.endswith(NOTE_SUFFIX)]
    notes = run_parallel(lambda name: ShardNote.model_validate_json(read_bytes(files[name][0])), ((name,) for name in names))
    numbers = [int(name.removesuffix(NOTE_SUFFIX).removeprefix("shard-")) for name in names]
    return {number: note for number, note in zip(numbers, notes, strict=True)
            if not note.shard or files.get(note.shard.name.rpartition("/")[2], ("", 0))[1] == note.shard.num_bytes}


def delete_other_folders(output_uri: str, keep: Iterable[str]) -> None:
    """Remove the folders of other preparations. What is not ours stays."""
    kept = set(keep)
    found = {part for uri in list_files(output_uri) for part in uri.split("/") if FOLDER_NAME.fullmatch(part)}
    run_parallel(delete, ((join_uri(output_uri, folder),) for folder in sorted(found - kept)))


def publish(output_uri: str, folder: str, notes: Sequence[ShardNote], rejected: Sequence[RejectedRow], options: ShardOptions,
            sources: Iterable[SourceInfo], counted: Literal["regions", "questions"] = "regions") -> Manifest:
    """Make the shards of `folder` the content of `output_uri`. `rejected`: what was set aside before there were parts.

    Raises TooManyRejectedError and ShardError of `check_set`: then `rejected.jsonl` is written and the manifest,
    with the shards that it names, is as it was.
    """
    counts = sum((note.counts for note in notes), Counts.of([], rejected))
    all_rejected = [*rejected, *(each for note in notes for each in note.rejected)]
    write_rejected(output_uri, all_rejected)
    check_set(counts, all_rejected, options.max_rejected_share, counted)
    shards = [note.shard for note in notes if note.shard]
    totals = counts.model_dump(exclude={"num_mask_questions", "read_s", "build_s", "check_s", "write_s"})
    manifest = Manifest(**totals, seed=options.seed, sources=list(sources),
                        num_bytes=sum(shard.num_bytes for shard in shards), shards=shards)
    write_manifest(output_uri, manifest)
    delete_other_folders(output_uri, [folder])
    return manifest


def write_rejected(output_uri: str, rejected: Iterable[RejectedRow]) -> None:
    """Write `rejected.jsonl`."""
    lines = "".join(json.dumps(asdict(each)) + "\n" for each in rejected)
    write_bytes(join_uri(output_uri, REJECTED_NAME), lines.encode())


def write_shards(rows: Iterable[Row | RejectedRow], output_uri: str, options: ShardOptions, sources: Iterable[SourceInfo] = ()) -> Manifest:
    """Shards of rows that this process holds, all of them at once: for sets that fit into its memory. Large ones: prepare.py.

    A row that fails `validate_row`, or whose (source, split, image_id) came before, is set aside with its reason like a RejectedRow.
    Raises what `publish` does.
    """
    collector, sources = RowCollector(options.max_side), list(sources)
    for row in rows:
        collector.add(row)
    order = shuffle_order(options.seed, [row_key(row) for row in collector.rows])
    shuffled = [collector.rows[place] for place in order]
    tables = [pa.Table.from_pylist(shuffled[each], schema=ROW_SCHEMA) for each in cut_parts(map(_row_bytes, shuffled), options)]
    parts = [Part(table, Counts.of(table.to_pylist(), ()), []) for table in tables]
    folder = folder_name([options.model_dump(), [source.model_dump() for source in sources]], tables)
    notes = [write_shard(parts[start:start + options.parts_per_shard], output_uri, folder, number)
             for number, start in enumerate(range(0, len(parts), options.parts_per_shard))]
    return publish(output_uri, folder, notes, collector.rejected, options, sources)


def folder_name(settings: Any, tables: Iterable[pa.Table]) -> str:
    """Name of the folder for the shards that follow from `settings` (JSON) and `tables`."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, settings], sort_keys=True).encode())
    for table in tables:
        for batch in table.to_batches():
            digest.update(batch.serialize())
    return f"shards-{digest.hexdigest()[:12]}"


def _row_bytes(row: Row) -> int:
    """About what the row takes: the photo and the masks; text and numbers are small beside them."""
    return len(row["image"]) + sum(len(region["rle_counts"]) + 64 for region in row["regions"]) + 256


def verify_checksums(uri: str) -> Manifest:
    """Read every shard of the folder and compare it with the manifest. Raises ShardError for one that differs."""
    manifest = read_manifest(uri)
    for shard, shard_uri in zip(manifest.shards, manifest.shard_uris(uri), strict=True):
        sha256 = hashlib.sha256(read_bytes(shard_uri)).hexdigest()
        if sha256 != shard.sha256:
            raise ShardError(f"{shard_uri} has checksum {sha256[:12]}, the manifest says {shard.sha256[:12]}; prepare the data again")
    return manifest


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
