"""Makes shards out of a dataset, on all nodes: `python -m jobs.prepare_data source=coco input=URI annotations=URI output=URI`.

`source=NAME --help` lists the keys of a source. `dry_run=true` looks at the dataset and says what is missing where, and writes nothing.
"""

import sys
from typing import Any, Literal

from pydantic import ConfigDict, Field, create_model, field_validator

from pixellm.data.dry_run import dry_run
from pixellm.data.parts import ShardOptions
from pixellm.data.prepare import Prepared, prepare
from pixellm.data.sources import SOURCES, describe_sources, source_class
from pixellm.errors import PixelLMError
from pixellm.settings import StrictModel, parse_command_line
from pixellm.uris import Uri


class SourceChoice(StrictModel):
    """The one key that decides which others there are."""

    model_config = ConfigDict(extra="ignore")

    source: str = Field(description=f"one of {', '.join(SOURCES)}; source=NAME --help lists its keys")

    @field_validator("source")
    @classmethod
    def _known(cls, name: str) -> str:
        source_class(name)
        return name


def build_config_class(source: str) -> type[StrictModel]:
    """All keys of one line: those of the source, of the shards, and `output`. A `seed` is both the source's and the shuffle's."""
    fields: dict[str, Any] = {
        "source": (Literal[source], source),  # type: ignore[valid-type]
        "output": (Uri | None, Field(None, description="URI of the folder of shards; needed unless dry_run")),
        "dry_run": (bool, Field(False, description="look at the dataset only")),
    }
    return create_model(f"Prepare{source.capitalize()}", __base__=(source_class(source), ShardOptions), **fields)


def print_summary(prepared: Prepared, output: str) -> None:
    """The table at the end. Seconds of the tasks are sums over all of them."""
    manifest, counts = prepared.manifest, prepared.counts
    reasons = ", ".join(f"{reason} {count}" for reason, count in manifest.rejected_by_reason.items()) or "none"
    lines = {
        "rows": f"{manifest.num_rows:,}", "regions": f"{manifest.num_regions:,}", "questions": f"{manifest.num_conversations:,}",
        "targets": f"{manifest.num_targets:,}", "rejected rows": f"{manifest.num_rejected_rows:,}",
        "rejected annotations": f"{manifest.num_rejected_annotations:,}", "rejected by reason": reasons,
        "bytes": f"{manifest.num_bytes:,}", "shards": f"{len(manifest.shards):,}, {prepared.num_kept_shards:,} of them of an earlier run",
        "seconds": f"{prepared.duration_s:.1f}, {counts.num_rows / prepared.duration_s:,.1f} rows/s",
        "seconds of tasks": counts.time_shares(), "output": output,
    }
    print("\n".join(f"  {name:<22}{value}" for name, value in lines.items()), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point. Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts Ray on this machine."""
    argv = sys.argv[1:] if argv is None else argv
    has_source = any(argument.startswith(("source=", "--config")) for argument in argv)
    about = f"{__doc__}\nsources:\n{describe_sources()}"
    choice = parse_command_line(SourceChoice, about, [a for a in argv if not has_source or a not in ("-h", "--help")])
    config: Any = parse_command_line(build_config_class(choice.source), __doc__ or "", argv)
    kinds = (source_class(choice.source), ShardOptions)
    source, options = (kind.model_validate({name: getattr(config, name) for name in kind.model_fields}) for kind in kinds)
    if not (config.output or config.dry_run):
        sys.exit("error: output: give the URI of the folder of shards, or dry_run=true to look at the dataset only")
    try:
        if config.dry_run:
            found = dry_run(source, options)  # type: ignore[arg-type]
            print("\n".join(f"  {line}" for line in found.lines(options)))  # type: ignore[arg-type]
            sys.exit(1 if found.problem else 0)
        print_summary(prepare(source, config.output, options), config.output)  # type: ignore[arg-type]
    except PixelLMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
