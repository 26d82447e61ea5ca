"""Turns a checkpoint into a model directory: `python -m jobs.export checkpoint=s3://bucket/runs/RUN output=s3://bucket/models/NAME`.

`checkpoint` is the folder of a run (its latest finished checkpoint is taken) or of one checkpoint. Adapters are merged.
"""

import sys
from typing import Literal

import torch
from pydantic import Field

from pixellm.errors import PixelLMError
from pixellm.settings import StrictModel, parse_command_line
from pixellm.train.export import export_checkpoint, resolve_checkpoint


class ExportConfig(StrictModel):
    """What to export and where to."""

    checkpoint: str = Field(description="URI of a run, or of one of its checkpoints")
    output: str = Field(description="URI of the model directory; files of the same names are replaced")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the written weights")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(ExportConfig, __doc__ or "", argv)
    try:
        checkpoint_uri = resolve_checkpoint(config.checkpoint)
        exported = export_checkpoint(checkpoint_uri, config.output, getattr(torch, config.dtype))
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"exported {exported.config.run} step {exported.progress.step} ({checkpoint_uri}) to {config.output}")


if __name__ == "__main__":
    main()
