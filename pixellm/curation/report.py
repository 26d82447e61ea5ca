"""What a curation came to: `curation.json` for programs, lines for people, and the quality page, which shows samples with their masks."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pixellm.curation.budget import StageCosts
from pixellm.curation.config import CurateConfig
from pixellm.curation.prompts import prompts_of
from pixellm.curation.worker import ShardExtras
from pixellm.data.parts import Counts
from pixellm.data.survey import build_page, read_samples, survey
from pixellm.revision import git_revision
from pixellm.storage import join_uri, write_bytes

PAGE_NAME = "quality.html"
SHOWN_REJECTED = 3  # of each reason
SHOWN_CHARACTERS = 200
STAGES = ("questions", "repair")  # those whose answers hold questions


@dataclass
class Report:
    """`counts` is of photos and questions that were kept or set aside. `costs` of this run, by stage; `used`: for each stage the number of
    answers that all of it took, also in earlier runs, and their tokens in, and out. `rejected` counts questions by (reason, stage)."""

    config: CurateConfig
    counts: Counts
    costs: dict[str, StageCosts]
    num_kept_shards: int
    accepted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    used: dict[str, list[int]] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, extras: ShardExtras) -> None:
        """Count what came of a shard."""
        self.accepted.update(extras.accepted)
        for stage, numbers in extras.used.items():
            self.used[stage] = [a + b for a, b in zip(self.used.get(stage, [0, 0, 0]), numbers, strict=True)]
        for each in extras.rejected:
            self.rejected[each["reason"], each["stage"]] += 1
            examples = self.examples.setdefault(each["reason"], [])
            if len(examples) < SHOWN_REJECTED:
                examples.append(each)

    def to_dict(self) -> dict[str, Any]:
        """What curation.json holds: plain values only."""
        counts, endpoints = self.counts, self.config.endpoints()
        price = {stage: endpoints[self.config.endpoint_of(stage)].cost(*tokens) for stage, (_, *tokens) in self.used.items()}
        return {
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "git_revision": git_revision(), "pipeline": self.config.pipeline,
            "models": {name: endpoint.model for name, endpoint in endpoints.items()}, "prompts": prompts_of(self.config.pipeline),
            "num_photos": counts.num_rows, "num_questions": counts.num_conversations, "num_targets": counts.num_targets,
            "num_questions_repaired": self.accepted["repair"], "photos_set_aside": counts.rejected_by_reason,
            "questions_rejected": {reason: {stage: self.rejected[reason, stage] for stage in STAGES} for reason in sorted(self.examples)},
            "cost": sum(price.values()), "cost_of_this_run": sum(each.cost for each in self.costs.values()),
            "costs_of_this_run": {stage: each.model_dump() for stage, each in self.costs.items()},
            "answers_used": {stage: {"num_answers": each[0], "input_tokens": each[1], "output_tokens": each[2], "cost": price[stage]}
                             for stage, each in self.used.items()},
            "settings": self.config.model_dump(),
        }

    def lines(self) -> list[str]:
        """For people, without the costs of this run."""
        found = self.to_dict()
        models = ", ".join(f"{name} {model}" for name, model in found["models"].items())
        lines = [f"curated by pipeline {found['pipeline']} ({models}; prompts {', '.join(found['prompts'])}) at {found['created']}",
                 f"{found['num_questions']:,} questions about {found['num_photos']:,} photos, {found['num_questions_repaired']:,} of them "
                 f"from the round of repair; they cost {found['cost']:.4g}",
                 "photos set aside: " + (", ".join(f"{reason} {count:,}" for reason, count in found["photos_set_aside"].items()) or "none"),
                 "questions rejected, at first and in the round of repair:" if self.examples else "questions rejected: none"]
        for reason, counts in found["questions_rejected"].items():
            lines.append(f"  {reason:<20}{counts['questions']:>7,}{counts['repair']:>7,}")
        return lines

    def example_lines(self) -> list[str]:
        """Some questions that were rejected, with why."""
        return [f"  {reason}: {each.get('question', each.get('content', ''))[:SHOWN_CHARACTERS]!r} ({each['detail'][:SHOWN_CHARACTERS]})"
                for reason, some in sorted(self.examples.items()) for each in some]


def cost_lines(costs: Mapping[str, StageCosts]) -> list[str]:
    """What this run asked and paid, by stage, for people."""
    columns = "".join(f"{name:>9}" for name in ("paid", "cached", "refused", "unsure"))
    lines = [f"{'stage':<12}{columns}{'tokens in':>13}{'tokens out':>12}{'cost':>11}{'unsure cost':>13}"]
    total = StageCosts(**{name: sum(getattr(each, name) for each in costs.values()) for name in StageCosts.model_fields})
    for stage, each in [*costs.items(), ("all", total)]:
        counts = "".join(f"{count:>9,}" for count in (each.num_paid, each.num_cached, each.num_refused, each.num_unsure))
        lines.append(f"{stage:<12}{counts}{each.input_tokens:>13,}{each.output_tokens:>12,}{each.cost:>11.4f}{each.unsure_cost:>13.4f}")
    return lines


def write_page(report: Report) -> str:
    """The page of `jobs.inspect_data` about the new shards, with what is known of their making above it. Returns its URI."""
    config = report.config
    notes = [*report.lines(), "", "some that were rejected:", *report.example_lines(), ""]
    page = build_page(config.output, survey(config.output), read_samples(config.output, config.num_examples, seed=0), notes)
    uri = join_uri(config.output, PAGE_NAME)
    write_bytes(uri, page.encode())
    return uri
