"""Trains on shards with Ray Train and DeepSpeed: `python -m jobs.train --config jobs/configs/train_tiny_cpu.yaml [key=value …]`.

The same `run` continues from its last checkpoint; a run that has reached `steps` ends at once. With `dry_run=true` no worker starts: it
says what would run and what memory it takes, lists everything that is missing, and ends with 1 where something is.
"""

import sys
import time

import ray
from pydantic import Field

from pixellm.errors import PixelLMError
from pixellm.settings import parse_command_line
from pixellm.train.config import TrainConfig
from pixellm.train.console import format_duration
from pixellm.train.dry_run import Assumed, dry_run
from pixellm.train.trainer import train


class TrainJob(TrainConfig):
    """A run, or a look at one."""

    dry_run: bool = Field(default=False, description="look at the run only")
    assume: Assumed = Assumed()


def main(argv: list[str] | None = None) -> None:
    """Entry point. Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts Ray on this machine."""
    job = parse_command_line(TrainJob, __doc__ or "", argv)
    config = TrainConfig.model_validate(job.model_dump(exclude={"dry_run", "assume"}))
    begun = time.monotonic()
    ray.init(ignore_reinit_error=True, log_to_driver=True)
    if job.dry_run:
        found = dry_run(config, job.assume)
        print(found.report(), flush=True)
        sys.exit(1 if found.problems else 0)
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
