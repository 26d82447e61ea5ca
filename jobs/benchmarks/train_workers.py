"""What runs on the training workers in `suite=train`: the real loop, with an iterator of batches that reads the clock between steps.

A step of the loop is the time from the moment it has its batch to the moment it asks for the next: everything that the loop does, and no
waiting for data. Between two steps of the loop the same batch goes through the bare model.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import torch
from ray.train import UserCallback

from pixellm.data.collate import MicroBatch
from pixellm.model.packing import unpack_batch
from pixellm.train.base import load_base
from pixellm.train.config import TrainConfig
from pixellm.train.forward import forward_losses, weighted_loss
from pixellm.train.loop import TrainLoop
from pixellm.train.parameters import select_parameters

NUM_BATCHES = 4  # in memory
KILLED_RANK = 1


class BareStep:
    """The same forward, losses, backward, clipping and AdamW on the same batch, by torch alone."""

    def __init__(self, config: TrainConfig, base_uri: str):
        self.config, self.model = config, load_base(base_uri)[0].train()
        groups = select_parameters(self.model, config)
        self.parameters = [parameter for group in groups for parameter in group.parameters.values()]
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters.values()), "lr": group.learning_rate} for group in groups], betas=config.betas,
            weight_decay=config.weight_decay)

    def __call__(self, batch: MicroBatch) -> None:
        """One optimiser step."""
        losses = forward_losses(self.model, unpack_batch(batch.tensors), self.config)
        weighted_loss(losses, self.config.loss_weights, max(batch.num_answer_tokens, 1), max(batch.num_masks, 1)).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Turns:
    """Batches from memory for one loop. `loop_s` and `bare_s`: seconds of each step, round by round."""

    def __init__(self, batches: list[MicroBatch], bare: Callable[[MicroBatch], None] | None):
        self._batches, self._bare = cycle(batches), bare
        self.loop_s: list[float] = []
        self.bare_s: list[float] = []
        self._given: float | None = None

    def __iter__(self) -> Iterator[MicroBatch]:
        return self

    def __next__(self) -> MicroBatch:
        if self._given is not None:
            self.loop_s.append(time.perf_counter() - self._given)
        batch = next(self._batches)
        if self._bare is not None:
            started = time.perf_counter()
            self._bare(batch)
            self.bare_s.append(time.perf_counter() - started)
        self._given = time.perf_counter()
        return batch


def step_worker(settings: dict) -> None:
    """Steps of the loop; with one worker the bare model's in turn. Writes `steps.json` into the run's folder."""
    config = TrainConfig.model_validate(settings["config"])
    loop = TrainLoop(config, settings["base_uri"])
    batches = [next(loop._next_batch) for _ in range(NUM_BATCHES)]
    loop.batches.close()
    turns = Turns(batches, BareStep(config, settings["base_uri"]) if config.num_workers == 1 else None)
    loop._next_batch = turns
    loop.run()
    if loop.rank == 0:
        (Path(config.run_uri) / "steps.json").write_text(json.dumps({"loop_s": turns.loop_s, "bare_s": turns.bare_s}))


class Stamps:
    """Points in time of all processes of a run, in a local folder."""

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def add(self, what: str, **details: int) -> None:
        """Now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps({"what": what, "at": time.time(), "pid": os.getpid(), **details}) + "\n")

    def read(self) -> list[dict]:
        """All so far, by time."""
        lines = [line for file in self.folder.glob("*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")]
        return sorted(map(json.loads, lines), key=lambda stamp: stamp["at"])


class StampedBatches:
    """Hands the loop its batches, and notes each asking for one: the step before is done."""

    def __init__(self, loop: TrainLoop, stamps: Stamps):
        self._loop, self._stamps, self._batches = loop, stamps, loop._next_batch

    def __iter__(self) -> Iterator[MicroBatch]:
        return self

    def __next__(self) -> MicroBatch:
        self._stamps.add("asked", rank=self._loop.rank, step=self._loop.step)
        return next(self._batches)


def stamped_worker(settings: dict) -> None:
    """The loop as it is, from its stream, with stamps below the run's folder."""
    config = TrainConfig.model_validate(settings["config"])
    stamps = Stamps(f"{config.run_uri}/stamps")
    stamps.add("entered")
    loop = TrainLoop(config, settings["base_uri"])
    stamps.add("built", rank=loop.rank, step=loop.step)
    loop._next_batch = StampedBatches(loop, stamps)
    loop.run()


class DetectionStamp(UserCallback):
    """Notes when Ray Train has seen that a worker is gone."""

    def __init__(self, folder: str):
        self.folder = folder

    def after_exception(self, run_context, worker_exceptions) -> None:
        """Called by the controller."""
        Stamps(self.folder).add("detected")
