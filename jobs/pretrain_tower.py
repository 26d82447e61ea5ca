"""Warm start of the `tiny` preset's vision tower and mask head: `python -m jobs.pretrain_tower --config FILE [key=value …]`.

Starts from random weights and writes a model directory, from which `jobs.train` goes on.
"""

import sys
import tempfile
import time

import ray

from pixellm.errors import PixelLMError
from pixellm.settings import parse_command_line
from pixellm.storage import upload_folder
from pixellm.train.base import build_random_tiny
from pixellm.train.console import format_duration, say
from pixellm.train.tower import TowerConfig, warm_start


def main(argv: list[str] | None = None) -> None:
    """Entry point. Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts Ray on this machine."""
    config = parse_command_line(TowerConfig, __doc__ or "", argv)
    begun = time.monotonic()
    ray.init(ignore_reinit_error=True)
    try:
        model, processor = build_random_tiny(config.seed)
        warm_start(model, processor.image_processor, config, say)
        with tempfile.TemporaryDirectory(prefix="pixellm-tower-") as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            upload_folder(folder, config.output)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"warm start: {config.steps} steps in {format_duration(time.monotonic() - begun)}; model {config.output}")


if __name__ == "__main__":
    main()
