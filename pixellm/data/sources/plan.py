"""What a source promises: a plan of its photos, made from the annotation files alone, and a builder that makes one row out of one record.

The plan is made once, in one process, and stays small: annotations are carried as the JSON text that stands in the file. Builders run on
the workers of the cluster, photo by photo; there annotations are parsed, masks rasterised, questions made.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from pixellm.data.schema import RejectedRow, Row
from pixellm.data.sources.photos import PhotoFolder
from pixellm.errors import RowError
from pixellm.settings import Seed, StrictModel

RECORD_SCHEMA = pa.schema([
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("photo_uri", pa.string()),
    pa.field("payload", pa.large_binary(), nullable=False),
    pa.field("num_bytes", pa.int64(), nullable=False),
    pa.field("is_complete", pa.bool_(), nullable=False),
])

FLUSH_BYTES = 32 << 20  # of payloads as Python objects, before they become a table


@dataclass(frozen=True)
class PhotoRecord:
    """One photo to be made into a row. `photo_uri` is None where the builder draws it; `payload` is what the builder reads, usually JSON.

    `num_bytes` says about how large the row will be: the photo's file and its annotations. A photo of which the plan has set something
    aside is not `is_complete`: what its annotations do not name may be in it all the same.
    """

    image_id: str
    photo_uri: str | None
    payload: bytes
    num_bytes: int
    is_complete: bool = True


class RowBuilder(Protocol):
    """Makes rows on a worker. Picklable, and small: it is sent to each of them once."""

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """The row of `record`, and before it a RejectedRow with `annotation_id` for each annotation that is set aside.

        `photo` is the encoded photo, empty where `photo_uri` is None. Raises RowError to set the whole photo aside, StorageError where a
        file that belongs to it cannot be read. The text it draws depends on the seed and the image id only, not on the order of photos.
        """
        ...


@dataclass(frozen=True)
class SourcePlan:
    """All photos of one split of one dataset. `records` has RECORD_SCHEMA and distinct image ids; `rejected` was set aside on the way.

    `notes` tell the user what holds for the whole set. `counted` is what an `annotation_id` that is set aside stands for: its share is of
    the regions, or of the questions.
    """

    source: str
    split: str
    records: pa.Table
    builder: RowBuilder
    rejected: list[RejectedRow]
    version: str
    notes: Sequence[str] = ()
    counted: Literal["regions", "questions"] = "regions"


class Source(StrictModel):
    """Base of every source: its configuration. Fields that a user must give have no default."""

    seed: Seed = 0

    @abstractmethod
    def plan(self) -> SourcePlan:
        """Read the annotation files and list the photos; opens no photo.

        Raises ConfigError or StorageError that names all that is missing or wrong about the dataset's files at once.
        """


@dataclass
class PlanDraft:
    """A plan while it is made: finds each photo in the folder and sets aside what cannot be found or comes twice, as an id or a file."""

    source: str
    split: str
    photos: PhotoFolder | None = None
    rejected: list[RejectedRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counted: Literal["regions", "questions"] = "regions"
    _columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in RECORD_SCHEMA.names})
    _seen: set[str] = field(default_factory=set)
    _id_of_photo: dict[str | None, str] = field(default_factory=dict)
    _incomplete: set[str] = field(default_factory=set)
    _tables: list[pa.Table] = field(default_factory=list)
    _num_waiting_bytes: int = 0

    def add(self, image_id: str, names: Mapping[str, Any], payload: bytes | Mapping[str, Any], num_bytes: int = 0) -> None:
        """`names` are the `file_name` and `coco_url` that the photo is looked up by; a mapping as `payload` is written as JSON.

        `num_bytes` is about what the row needs beyond the payload and the photo's file.
        """
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        try:
            if image_id in self._seen:
                raise RowError("duplicate_id", f"{image_id} came before")
            uri = self.photos.find(names) if self.photos else None
            if uri in self._id_of_photo:
                self._incomplete.add(self._id_of_photo[uri])
                raise RowError("duplicate_photo", f"images {self._id_of_photo[uri]} and {image_id} are one file, {uri}")
        except RowError as error:
            self.reject(image_id, error)
            return
        self._seen.add(image_id)
        if uri:
            self._id_of_photo[uri] = image_id
        num_bytes += len(data) + (self.photos.size_bytes(uri) if self.photos and uri else 0)
        for name, value in zip(RECORD_SCHEMA.names, (image_id, uri, data, num_bytes, True), strict=True):
            self._columns[name].append(value)
        self._num_waiting_bytes += len(data)
        if self._num_waiting_bytes >= FLUSH_BYTES:
            self._flush()

    def reject(self, image_id: object, error: RowError, annotation_id: str | None = None) -> None:
        """Set aside a photo, or one annotation."""
        self._incomplete.add(str(image_id))
        self.rejected.append(RejectedRow(str(image_id), self.source, error.reason, error.detail, annotation_id))

    def finish(self, builder: RowBuilder, version: str) -> SourcePlan:
        """The plan."""
        self._flush()
        for name in self.photos.not_utf8 if self.photos else ():
            self.reject(name, RowError("name_not_utf8", "the photo's file name is not UTF-8, so no annotation can name it; rename it"))
        records = pa.concat_tables(self._tables)
        is_complete = pa.array([image_id not in self._incomplete for image_id in records["image_id"].to_pylist()], pa.bool_())
        records = records.set_column(records.num_columns - 1, RECORD_SCHEMA.field("is_complete"), is_complete)
        return SourcePlan(self.source, self.split, records, builder, self.rejected, version, self.notes, self.counted)

    def _flush(self) -> None:
        self._tables.append(pa.table(self._columns, schema=RECORD_SCHEMA))
        self._columns, self._num_waiting_bytes = {name: [] for name in RECORD_SCHEMA.names}, 0
