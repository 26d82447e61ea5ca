"""Runs a source as the job does, in one process."""

from pixellm.data.schema import RejectedRow, Row, validate_row
from pixellm.data.sources.plan import PhotoRecord, Source
from pixellm.errors import RowError, StorageError
from pixellm.storage import read_bytes


def build_all(source: Source) -> tuple[list[Row], list[RejectedRow]]:
    """All rows of the source, each of them valid, and all that was set aside."""
    plan = source.plan()
    rows: list[Row] = []
    rejected = list(plan.rejected)
    for entry in plan.records.to_pylist():
        record = PhotoRecord(**entry)
        try:
            for each in plan.builder.build(record, read_bytes(record.photo_uri) if record.photo_uri else b""):
                (rejected if isinstance(each, RejectedRow) else rows).append(each)
        except RowError as error:
            rejected.append(RejectedRow(record.image_id, plan.source, error.reason, error.detail))
        except StorageError as error:
            rejected.append(RejectedRow(record.image_id, plan.source, "photo_unreadable", str(error)))
    for row in rows:
        validate_row(row)
    return rows, rejected
