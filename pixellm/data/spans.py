"""Rows out of shards: which row groups there are, and the rows of one in the order of its epoch. Nothing here knows Ray."""

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from time import sleep

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pixellm.data.manifest import Manifest, read_manifest
from pixellm.data.mixture import Mixture, MixtureSet, RowGroup, Span
from pixellm.data.schema import Row
from pixellm.errors import ShardError
from pixellm.storage import join_uri, open_filesystem, run_parallel

READ_ATTEMPTS, FIRST_PAUSE_S = 7, 1.0  # of an object that cannot be read; each pause is twice the one before: a minute in all


@dataclass(frozen=True)
class StreamedRow:
    """A row, its epoch, and its key there: `source/split/image_id`, with `#n` on a repeated visit."""

    row: Row
    epoch: int
    key: str


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
    """The rows of `span` in its order: `key`, `image`, and `rest`, the pickle of the other columns. Nested columns are slow to take apart,
    and a row group is opened by many tasks: 13 % of a task's time went there.

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
            sleep(FIRST_PAUSE_S * 2**attempt)
    table = table.take(span.order(seed))
    parts = (table.column(name).cast(pa.string()) for name in ("source", "split", "image_id"))
    keys = pc.binary_join_element_wise(*parts, "/")
    keys = pc.binary_join_element_wise(keys, pa.scalar(f"#{span.visit}" if span.visit else ""), "")
    rest = pa.array([pickle.dumps(row) for row in table.drop_columns(["image"]).to_pylist()], pa.binary())
    return pa.table({"key": keys, "image": table["image"], "rest": rest})


def read_rows(tables: dict[int, tuple[pa.Table, int]], places: Iterable[tuple[int, int]]) -> list[StreamedRow]:
    """Rows out of tables of `read_span` (with their epoch) by (number of the table, place in it)."""
    rows = []
    for number, place in places:
        table, epoch = tables[number]
        row: Row = pickle.loads(table["rest"][place].as_py())
        row["image"] = table["image"][place].as_py()
        rows.append(StreamedRow(row, epoch, table["key"][place].as_py()))
    return rows
