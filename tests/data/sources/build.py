"""Runs a source to the end in this process, with what the job runs on many workers."""

from pixellm.data.parts import build_part
from pixellm.data.schema import RejectedRow, Row
from pixellm.data.sources.plan import Source


def build_all(source: Source) -> tuple[list[Row], list[RejectedRow]]:
    """Every row, each of them valid, in the plan's order; and all that was set aside, while planning and while building."""
    plan = source.plan()
    part = build_part(plan.records, plan.builder, plan.source, max_side=None)
    return part.rows.to_pylist(), [*plan.rejected, *part.rejected]
