"""Turns a checkpoint into a model directory: `python -m jobs.export checkpoint=s3://bucket/runs/RUN output=s3://bucket/models/NAME`.

`checkpoint` is the folder of a run (its latest finished checkpoint is taken) or of one checkpoint. Adapters are merged, unless only they
are asked for. A Ray task does the work, so that a small head does not need a model's memory.
"""

import sys
from typing import Literal

import torch
from pydantic import Field

from pixellm.errors import PixelLMError
from pixellm.resources import run_task
from pixellm.settings import StrictModel, parse_command_line
from pixellm.storage import absolute_uri
from pixellm.train.export import check_push_target, export_checkpoint, export_memory
from pixellm.train.restore import resolve_checkpoint
from pixellm.uris import Uri


class ExportConfig(StrictModel):
    """What to export and where to."""

    checkpoint: Uri = Field(description="URI of a run, or of one of its checkpoints")
    which: Literal["latest", "best"] = Field("latest", description="checkpoint of a run; best: by gIoU of its validation")
    output: Uri = Field(description="URI of the model directory; files of the same names are replaced")
    push: str | None = Field(None, description="a second place for the same files: s3://bucket/key, or a path that starts with / or .")
    adapters_only: bool = Field(False, description="write only what was trained, to be put onto its base again")
    resource_wait_s: float = Field(1800, gt=0, description="how long the job waits for a node with the memory that it needs")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the written weights")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(ExportConfig, __doc__ or "", argv)
    try:
        if config.push is not None:
            check_push_target(config.push)
        checkpoint_uri = resolve_checkpoint(config.checkpoint, best=config.which == "best")
        outputs = [config.output, *([config.push] if config.push is not None else [])]
        places = [checkpoint_uri, *map(absolute_uri, outputs)]
        bundle = {"CPU": 1.0, "memory": export_memory(checkpoint_uri, config.adapters_only)}
        near = not all("://" in place for place in places)
        exported = run_task(export_checkpoint, checkpoint_uri, places[1:], getattr(torch, config.dtype), config.adapters_only,
                            bundle=bundle, what="the export", patience_s=config.resource_wait_s, near=near)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"exported {exported.run} step {exported.step} ({checkpoint_uri}) to {' and '.join(outputs)}")


if __name__ == "__main__":
    main()
