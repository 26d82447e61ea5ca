"""Turns a checkpoint into a model directory: `python -m jobs.export checkpoint=s3://bucket/runs/RUN output=s3://bucket/models/NAME`.

`checkpoint` is the folder of a run (its latest finished checkpoint is taken) or of one checkpoint. Adapters are merged, unless only they
are asked for.
"""

import sys
from typing import Literal

import torch
from pydantic import Field

from pixellm.errors import PixelLMError
from pixellm.settings import StrictModel, parse_command_line
from pixellm.train.export import check_push_target, export_checkpoint
from pixellm.train.restore import resolve_checkpoint
from pixellm.uris import Uri


class ExportConfig(StrictModel):
    """What to export and where to."""

    checkpoint: Uri = Field(description="URI of a run, or of one of its checkpoints")
    which: Literal["latest", "best"] = Field("latest", description="checkpoint of a run; best: by gIoU of its validation")
    output: Uri = Field(description="URI of the model directory; files of the same names are replaced")
    push: str | None = Field(None, description="a second place for the same files: s3://bucket/key, or a path that starts with / or .")
    adapters_only: bool = Field(False, description="write only what was trained, to be put onto its base again")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the written weights")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(ExportConfig, __doc__ or "", argv)
    try:
        if config.push is not None:
            check_push_target(config.push)
        checkpoint_uri = resolve_checkpoint(config.checkpoint, best=config.which == "best")
        outputs = [config.output, *([config.push] if config.push is not None else [])]
        weights = export_checkpoint(checkpoint_uri, outputs, getattr(torch, config.dtype), config.adapters_only)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"exported {weights.config.run} step {weights.progress.step} ({checkpoint_uri}) to {' and '.join(outputs)}")


if __name__ == "__main__":
    main()
