"""Where a run's figures go. A sink is one file here; `build_sinks` says which a run has."""

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from PIL import Image

from pixellm.train.config import TrainConfig
from pixellm.train.console import say

Writer = Literal["train", "validation"]  # worker 0, or the process that validates: two at the same time


class Sink(Protocol):
    """Takes figures by tag (see metric_names.py). What it raises is told once and never stops the run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Figures after `step` optimiser steps."""
    def write_picture(self, step: int, tag: str, picture: Image.Image) -> None:
        """An RGB picture."""
    def flush(self) -> None:
        """Bring what was written to where it can be read; called at checkpoints."""
    def close(self) -> None:
        """Flush, and let go of everything."""


class Sinks:
    """All sinks of a writer as one. A sink that fails is tried again with the next figures."""

    def __init__(self, sinks: list[Sink]):
        self.sinks, self.num_failures = sinks, 0
        self._told: set[str] = set()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """To each sink."""
        self._each("write", step, values)

    def write_picture(self, step: int, tag: str, picture: Image.Image) -> None:
        """To each sink."""
        self._each("write_picture", step, tag, picture)

    def flush(self) -> None:
        """Each sink."""
        self._each("flush")

    def close(self) -> None:
        """Each sink."""
        self._each("close")

    def _each(self, method: str, *arguments: object) -> None:
        for sink in self.sinks:
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:
                self.num_failures += 1
                name = type(sink).__name__
                if name not in self._told:
                    self._told.add(name)
                    say(f"{name}: {type(error).__name__}: {error}; training goes on, further failures of it are not told")


def build_sinks(config: TrainConfig, writer: Writer, first_step: int = 0) -> Sinks:
    """The sinks of a run that goes on after `first_step`. A tracker that cannot be reached is told, and the run goes on without it."""
    return Sinks(list(_build(config, writer, first_step)))


def _build(config: TrainConfig, writer: Writer, first_step: int) -> Iterator[Sink]:
    from pixellm.train.sinks.prometheus import PrometheusSink
    from pixellm.train.sinks.tensorboard import TensorBoardSink

    yield TensorBoardSink(config.run_uri, writer, first_step)
    yield PrometheusSink(config.run)
    for name in ("mlflow", "wandb"):
        if getattr(config.telemetry, name) is not None:
            try:
                yield _build_tracker(name, config, writer)
            except Exception as error:
                say(f"{name} cannot be used: {type(error).__name__}: {error}; the run goes on without it")


def _build_tracker(name: str, config: TrainConfig, writer: Writer) -> Sink:
    if name == "mlflow":
        from pixellm.train.sinks.mlflow import MlflowSink

        return MlflowSink(config)
    from pixellm.train.sinks.wandb import WandbSink

    return WandbSink(config, writer)
