"""Runs a source to the end in this process, as the job does on many workers."""

from pixellm.data.schema import RejectedRow, Row, validate_row
from pixellm.data.sources.plan import PhotoRecord, Source
from pixellm.errors import RowError
from pixellm.storage import read_bytes


def build_all(source: Source) -> tuple[list[Row], list[RejectedRow]]:
    """Every row, each of them valid, in the plan's order; and all that was set aside, while planning and while building."""
    plan = source.plan()
    rows: list[Row] = []
    rejected = list(plan.rejected)
    for entry in plan.records.to_pylist():
        record = PhotoRecord(**entry)
        try:
            for each in plan.builder.build(record, read_bytes(record.photo_uri) if record.photo_uri else b""):
                if isinstance(each, RejectedRow):
                    rejected.append(each)
                else:
                    validate_row(each)
                    rows.append(each)
        except RowError as error:
            rejected.append(RejectedRow(record.image_id, plan.source, error.reason, error.detail))
    return rows, rejected
