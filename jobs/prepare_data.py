"""Reads a dataset and writes it as shards: `python -m jobs.prepare_data source=coco input=URI annotations=URI output=URI`.

`source=NAME --help` lists the keys of a source.
"""

import sys
import time
from typing import Any, Literal

from pydantic import ConfigDict, Field, create_model, field_validator

from pixellm.data.manifest import Manifest, SourceInfo
from pixellm.data.progress import show_progress
from pixellm.data.schema import RejectedRow
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources import SOURCES, source_class
from pixellm.errors import PixelLMError
from pixellm.settings import StrictModel, parse_command_line


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
        "output": (str, Field(description="URI of the folder of shards")),
    }
    return create_model(f"Prepare{source.capitalize()}", __base__=(source_class(source), ShardOptions), **fields)


def print_summary(manifest: Manifest, output: str, seconds: float) -> None:
    """The table at the end."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in manifest.rejected_by_reason.items()) or "none"
    lines = {
        "rows": f"{manifest.num_rows:,}", "regions": f"{manifest.num_regions:,}", "questions": f"{manifest.num_conversations:,}",
        "targets": f"{manifest.num_targets:,}", "rejected rows": f"{manifest.num_rejected_rows:,}",
        "rejected annotations": f"{manifest.num_rejected_annotations:,}", "rejected by reason": reasons,
        "bytes": f"{manifest.num_bytes:,}", "shards": f"{len(manifest.shards):,}", "seconds": f"{seconds:.1f}", "output": output,
    }
    print("\n".join(f"  {name:<22}{value}" for name, value in lines.items()), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    has_source = any(argument.startswith(("source=", "--config")) for argument in argv)
    choice = parse_command_line(SourceChoice, __doc__ or "", [a for a in argv if not has_source or a not in ("-h", "--help")])
    config: Any = parse_command_line(build_config_class(choice.source), __doc__ or "", argv)
    begun = time.monotonic()
    try:
        rows = show_progress(config.read_rows(), f"prepare {choice.source}", config.num_rows(),
                             counts=lambda row: not (isinstance(row, RejectedRow) and row.annotation_id))
        options = ShardOptions.model_validate({name: getattr(config, name) for name in ShardOptions.model_fields})
        origin = SourceInfo(name=choice.source, version=config.version(), settings=config.model_dump())
        manifest = write_shards(rows, config.output, options, [origin])
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print_summary(manifest, config.output, time.monotonic() - begun)


if __name__ == "__main__":
    main()
