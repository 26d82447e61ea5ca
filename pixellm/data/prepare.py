"""A source to a shard folder, with Ray Data: parts are built, and shards written, by as many workers as the cluster has.

The plan is shuffled before any photo is opened, and cut into parts of about a row group, so that which row lies where depends on the
plan and the options, not on the workers. A part is the unit of building: a dataset of a single shard is built in parallel too.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import ray
import ray.data
from pydantic import TypeAdapter

from pixellm.data.arrow import binary_value
from pixellm.data.manifest import Manifest, SourceInfo, read_manifest
from pixellm.data.parts import Counts, Part, RowCollector, ShardOptions, build_part, cut_parts, shuffle_order
from pixellm.data.progress import watch_progress
from pixellm.data.schema import RejectedRow
from pixellm.data.shards import ShardNote, delete_other_folders, folder_name, publish, read_notes, write_rejected, write_shard
from pixellm.data.sources.agreement import common_way
from pixellm.data.sources.plan import RECORD_SCHEMA, RowBuilder, Source, SourcePlan
from pixellm.errors import ShardError, TooManyRejectedError
from pixellm.revision import git_revision
from pixellm.storage import absolute_uri

WRITE_CPUS = 0.5  # another figure than that of building, or Ray Data makes one task of a shard's parts and its writing
PART_SCHEMA = pa.schema([("part", pa.int64()), ("rows", pa.large_binary()), ("counts", pa.string()), ("rejected", pa.large_string())])
_REJECTED = TypeAdapter(list[RejectedRow])


@dataclass(frozen=True)
class Prepared:
    """`counts` has the seconds of all tasks together; `num_kept_shards` were there from a run that did not end, and are not counted."""

    manifest: Manifest
    counts: Counts
    num_kept_shards: int
    duration_s: float


def prepare(source: Source, output: str, options: ShardOptions) -> Prepared:
    """Plan, build and write all rows of `source`, printing progress. Joins the Ray cluster that is there, or starts one.

    Earlier shards at `output` stay readable until the new manifest is written. Shards that a killed run with the same source, options and
    code has finished are kept. Raises ConfigError and StorageError of the plan, and those of `Counts.check`: TooManyRejectedError once
    the rest cannot make up for it. What was set aside until then is in `rejected.jsonl`.
    """
    began = time.monotonic()
    output = absolute_uri(output)
    plan = source.plan()
    for note in plan.notes:
        print(f"  note: {note}", flush=True)
    check_plan(plan, output, options)
    settings = [source.model_dump(), options.model_dump(exclude={"max_rejected_share"})]
    folder = folder_name([git_revision(), plan.source, plan.split, plan.version, settings], [plan.records])
    delete_other_folders(output, [folder, *_folders_in_use(output)])
    kept = read_notes(output, folder)
    written = _write_missing(plan, output, folder, options, set(kept))
    notes = [note for _, note in sorted((kept | written).items())]
    origin = SourceInfo(name=plan.source, version=plan.version, settings=options.model_dump() | source.model_dump())
    manifest = publish(output, folder, notes, plan.rejected, options, [origin], plan.counted)
    counts = sum((note.counts for note in written.values()), Counts())
    return Prepared(manifest, counts, len(kept), time.monotonic() - began)


def check_plan(plan: SourcePlan, output: str, options: ShardOptions) -> None:
    """Raises TooManyRejectedError where so many photos are set aside already that the rest cannot make up for it."""
    photos = [each for each in plan.rejected if each.annotation_id is None]
    try:
        (Counts.of([], photos) + Counts(num_rows=plan.records.num_rows)).check_share(options.max_rejected_share)
    except TooManyRejectedError:
        write_rejected(output, plan.rejected)
        raise


def plan_parts(plan: SourcePlan, options: ShardOptions) -> list[pa.Table]:
    """The records of each part, shuffled."""
    records = plan.records.combine_chunks()  # else each `take` below would copy all payloads
    order = shuffle_order(options.seed, [(plan.source, plan.split, image_id) for image_id in records["image_id"].to_pylist()])
    num_bytes = records["num_bytes"].take(order).to_pylist()
    return [records.take(order[each]) for each in cut_parts(num_bytes, options)]


def _folders_in_use(output: str) -> set[str]:
    """Of the shards that can be read now, if there are any."""
    with suppress(ShardError):
        return {shard.name.partition("/")[0] for shard in read_manifest(output).shards}
    return set()


def _write_missing(plan: SourcePlan, output: str, folder: str, options: ShardOptions, kept: set[int]) -> dict[int, ShardNote]:
    """Build and write the shards that are not in `kept`; their notes by number."""
    tables = {number: table for number, table in enumerate(plan_parts(plan, options)) if number // options.parts_per_shard not in kept}
    if not tables:
        return {}
    num_records = sum(table.num_rows for table in tables.values())
    tally: Any = _Tally.remote(num_records, options.max_rejected_share, plan.counted)  # type: ignore[attr-defined]
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    with ray.data.DataContext.current(context):
        records = ray.data.from_arrow([table.append_column("part", pa.array([number] * len(table))) for number, table in tables.items()])
        parts = records.map_batches(_build, batch_size=None, batch_format="pyarrow", num_cpus=1, zero_copy_batch=True, fn_kwargs={
            "builder": plan.builder, "source": plan.source, "max_side": options.max_side, "tally": tally})
        place = {"output": output, "folder": folder, "parts_per_shard": options.parts_per_shard}
        shards = parts.map_batches(_write, batch_size=options.parts_per_shard, batch_format="pyarrow", num_cpus=WRITE_CPUS,
                                   zero_copy_batch=True, fn_kwargs={**place, "tally": tally})
    with watch_progress(f"prepare {plan.source}", num_records, lambda: ray.get(tally.num_done.remote())):
        found = {row["shard"]: ShardNote.model_validate_json(row["note"]) for row in shards.iter_rows()}
    if verdict := ray.get(tally.verdict.remote()):
        rejected = [*plan.rejected, *(each for _, note in sorted(found.items()) for each in note.rejected)]
        write_rejected(output, rejected)
        raise TooManyRejectedError(". ".join(filter(None, (verdict, common_way(rejected)))))
    return found


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class _Tally:
    """Count what all tasks have done, and say when to stop: once too much is set aside even if all the rest is kept.

    One that is restarted counts from zero and judges later.
    """

    def __init__(self, num_photos: int, max_rejected_share: float, counted: Literal["regions", "questions"]):
        self._num_photos, self._max_rejected_share, self._counted = num_photos, max_rejected_share, counted
        self._parts: set[int] = set()
        self._total = Counts()
        self._verdict = ""

    def add(self, part: int, counts: Counts) -> None:
        """Count a part, once however often its task is repeated."""
        if part not in self._parts:
            self._parts.add(part)
            self._total += counts
        left, total = self._num_photos - self.num_done(), self._total
        regions, conversations = (left * max(1, num / max(total.num_rows, 1)) for num in (total.num_regions, total.num_conversations))
        rest = Counts(num_rows=left, num_regions=round(regions), num_conversations=round(conversations))
        if not self._verdict:
            try:
                (total + rest).check_share(self._max_rejected_share, self._counted)
            except TooManyRejectedError as error:
                self._verdict = str(error)

    def num_done(self) -> int:
        """Photos, kept or set aside."""
        return self._total.num_rows + self._total.num_rejected_rows

    def verdict(self) -> str:
        """Why the tasks are to stop; empty while they may go on."""
        return self._verdict


def _build(records: pa.Table, builder: RowBuilder, source: str, max_side: int | None, tally: Any) -> pa.Table:
    """In a task: one row of `PART_SCHEMA` for the records of a part. Nothing is built once too much has been set aside."""
    number = records["part"][0].as_py()
    if ray.get(tally.verdict.remote()):
        part = RowCollector().to_part()
    else:
        part = build_part(records.select(RECORD_SCHEMA.names), builder, source, max_side)
        ray.get(tally.add.remote(number, part.counts))
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, part.rows.schema) as writer:
        writer.write_table(part.rows)
    values = {"part": [number], "rows": binary_value(stream.getvalue()),
              "counts": [part.counts.model_dump_json()], "rejected": [_REJECTED.dump_json(part.rejected).decode()]}
    return pa.table(values, schema=PART_SCHEMA)


def _write(batch: pa.Table, output: str, folder: str, parts_per_shard: int, tally: Any) -> pa.Table:
    """In a task: the shard of these parts, and one row with its note. After the verdict no shard is written: its parts may be empty."""
    (number,) = {part // parts_per_shard for part in batch["part"].to_pylist()}
    parts = [_to_part(*values) for values in zip(*(batch[name] for name in ("rows", "counts", "rejected")), strict=True)]
    if ray.get(tally.verdict.remote()):
        note = ShardNote.of(None, parts)
    else:
        note = write_shard(parts, output, folder, number)
    return pa.table({"shard": [number], "note": [note.model_dump_json()]})


def _to_part(rows: pa.Scalar, counts: pa.Scalar, rejected: pa.Scalar) -> Part:
    with pa.ipc.open_stream(rows.as_buffer()) as reader:
        return Part(reader.read_all(), Counts.model_validate_json(counts.as_py()), _REJECTED.validate_json(rejected.as_py()))
