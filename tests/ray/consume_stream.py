"""A run that only reads: `python -m tests.ray.consume_stream FOLDER RECORD WORKERS STEPS`, to be killed at any moment and started again.

One actor per worker takes the micro-batches of its lanes. After every second step a line is appended to RECORD, the run's checkpoint: the
position and the keys of the steps since the last line.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import ray

from pixellm.data.mixture import DataPosition, lanes_of_worker
from pixellm.data.spans import read_mixture
from pixellm.data.stream import BatchStream

NUM_LANES, ROWS_PER_BATCH, SEED, STEPS_PER_CHECKPOINT = 4, 2, 5, 2


class KeepKeys:
    """A builder that keeps the keys."""

    def length(self, row):
        return len(row.row["image"]) % 7

    def build(self, rows):
        return [f"{row.epoch} {row.key}" for row in rows]


@ray.remote(num_cpus=0)
class Worker:
    """Its lanes, from a position on."""

    def __init__(self, folder, rank, num_workers, position):
        mixture = read_mixture([(folder, None)], SEED, NUM_LANES)
        self.lanes = lanes_of_worker(rank, num_workers, NUM_LANES)
        self.batches = iter(BatchStream(mixture, self.lanes, position, KeepKeys()))

    def step(self):
        """Keys of one step."""
        return [key for _ in self.lanes for key in next(self.batches)]


def read_record(record: Path) -> list[dict]:
    """Complete lines; a kill can cut the last one."""
    return [json.loads(line) for line in record.read_text().splitlines(keepends=True) if line.endswith("\n")] if record.exists() else []


def main() -> None:
    """Entry point."""
    folder, record, num_workers, num_steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    lines = read_record(record)
    record.write_text("".join(json.dumps(line) + "\n" for line in lines))
    position = (DataPosition(**lines[-1]["position"]) if lines
                else read_mixture([(folder, None)], SEED, NUM_LANES).start(ROWS_PER_BATCH))
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    workers = [Worker.remote(folder, rank, num_workers, position) for rank in range(num_workers)]
    steps: list[list[str]] = []
    while position.batches_per_lane < num_steps:
        steps.append(sorted(key for keys in ray.get([worker.step.remote() for worker in workers]) for key in keys))
        time.sleep(0.1)  # a step takes its time: a kill falls into it
        if len(steps) == STEPS_PER_CHECKPOINT:
            position = replace(position, batches_per_lane=position.batches_per_lane + len(steps))
            with record.open("a") as file:
                file.write(json.dumps({"position": vars(position), "steps": steps}) + "\n")
            steps = []
    ray.shutdown()


if __name__ == "__main__":
    main()
