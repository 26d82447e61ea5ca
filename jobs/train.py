"""Trains on shards with Ray Train and DeepSpeed: `python -m jobs.train --config jobs/configs/train_tiny_cpu.yaml [key=value …]`.

The same `run` continues from its last checkpoint; a run that has reached `steps` ends at once.
"""

import sys
import time

import ray

from pixellm.errors import PixelLMError
from pixellm.settings import parse_command_line
from pixellm.train.config import TrainConfig
from pixellm.train.console import format_duration
from pixellm.train.trainer import train


def main(argv: list[str] | None = None) -> None:
    """Entry point. Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts Ray on this machine."""
    config = parse_command_line(TrainConfig, __doc__ or "", argv)
    begun = time.monotonic()
    ray.init(ignore_reinit_error=True, log_to_driver=True)
    try:
        result = train(config)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    if result.was_done:
        print(f"run {config.run} is at step {result.step} of {config.steps} already: nothing to train; checkpoint {result.checkpoint_uri}")
        return
    print(f"run {config.run}: {result.step} steps in {format_duration(time.monotonic() - begun)}; checkpoint {result.checkpoint_uri}")


if __name__ == "__main__":
    main()
