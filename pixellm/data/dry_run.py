"""Looks at a dataset before it is prepared: what is missing where, what a sample of it becomes, and what all of it will take."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pixellm.data.parts import Counts, ShardOptions, build_part, check_set
from pixellm.data.schema import RejectedRow
from pixellm.data.sources.plan import Source
from pixellm.errors import ShardError, TooManyRejectedError

SAMPLE_SIZE = 64
SHOWN_PER_REASON = 3


@dataclass(frozen=True)
class DryRun:
    """`num_photos` and `notes` of the plan, the counts of the sample, everything set aside in either, and why the real run would stop."""

    num_photos: int
    num_bytes: int
    sample: Counts
    rejected: list[RejectedRow]
    notes: Sequence[str]
    problem: str | None

    def lines(self, options: ShardOptions) -> list[str]:
        """For people."""
        num_seen = max(self.sample.num_rows + self.sample.num_rejected_rows, 1)
        seconds = (self.sample.read_s + self.sample.build_s + self.sample.check_s) * self.num_photos / num_seen
        num_shards = max(1, round(self.num_bytes / (options.shard_size_mb * 1e6)))
        found = [f"{self.num_photos:,} photos with annotations, about {self.num_bytes / 1e6:,.1f} MB in {num_shards:,} shards",
                 f"a sample of {num_seen}: {self.sample.num_rows} rows, {self.sample.num_regions} regions, "
                 f"{self.sample.num_conversations} questions, {self.sample.num_targets} targets",
                 f"about {seconds:,.0f} s on one core, by the sample"]
        for reason, count in Counter(each.reason for each in self.rejected).most_common():
            examples = [each for each in self.rejected if each.reason == reason][:SHOWN_PER_REASON]
            shown = "; ".join(f"image {each.image_id}: {each.detail}" for each in examples)
            found.append(f"set aside, {reason}: {count:,}, such as {shown}")
        found += [f"note: {note}" for note in self.notes]
        return found + ([f"it would stop: {self.problem}"] if self.problem else ["nothing would stop it"])


def dry_run(source: Source, options: ShardOptions) -> DryRun:
    """Plan all, build a sample spread over the plan, write nothing. Raises ConfigError and StorageError of the plan.

    `problem` is what the real run would stop with if all photos were as those of the sample; the sample of a small set is all of it.
    """
    plan = source.plan()
    num_photos = plan.records.num_rows
    places = np.linspace(0, num_photos - 1, min(SAMPLE_SIZE, num_photos)).astype(np.int64)
    part = build_part(plan.records.take(places), plan.builder, plan.source, options.max_side)
    forecast = part.counts.scaled(num_photos / max(len(places), 1)) + Counts.of([], plan.rejected)
    rejected, problem = [*plan.rejected, *part.rejected], None
    try:
        check_set(forecast, rejected, options.max_rejected_share, plan.counted)
    except (TooManyRejectedError, ShardError) as error:
        problem = str(error)
    num_bytes = sum(plan.records["num_bytes"].to_pylist())
    return DryRun(num_photos, num_bytes, part.counts, rejected, plan.notes, problem)
