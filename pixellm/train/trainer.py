"""A configuration to a finished run: prepares the base model, starts Ray Train with the right resources, and says where the result is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray.exceptions import RayActorError
from ray.train import ControllerError, FailureConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from pixellm.data.manifest import read_manifest
from pixellm.data.stream import READ_CPUS
from pixellm.errors import PixelLMError
from pixellm.resources import describe_shortage
from pixellm.storage import open_filesystem
from pixellm.train.base import prepare_base
from pixellm.train.checkpoint import checkpoint_step, find_latest_checkpoint
from pixellm.train.config import TrainConfig
from pixellm.train.history import is_over
from pixellm.train.loop import train_worker
from pixellm.train.validation import validating

RESTART_PAUSE_S = 5.0


@dataclass(frozen=True)
class TrainResult:
    """`checkpoint_uri` of the last step, which comes before `steps` where validation stopped the run early; `was_done` when the run had
    reached it before and nothing was trained now."""

    checkpoint_uri: str
    step: int
    was_done: bool


def train(config: TrainConfig) -> TrainResult:
    """Run, or go on with, `config.run` until its last step. A Ray cluster must be connected.

    Raises ShardError and StorageError before any worker starts, where the data or the storage are wrong; ConfigError and ModelError when
    the run's checkpoint is of other data or another model; DivergedError.
    """
    latest = find_latest_checkpoint(config.run_uri)
    if latest is not None and ((done := checkpoint_step(latest)) >= config.steps or is_over(config)):
        return TrainResult(latest, done, was_done=True)
    for uri in [*(entry.uri for entry in config.data), *([config.validation.shards] if config.validation else [])]:
        read_manifest(uri)
    _warn_if_short(config)
    base_uri = prepare_base(config)
    with validating(config):
        stopped = fit(config, base_uri).return_value
        if isinstance(stopped, PixelLMError):
            raise stopped
    latest = find_latest_checkpoint(config.run_uri)
    assert latest is not None, "a finished run has a checkpoint of its last step"
    return TrainResult(latest, checkpoint_step(latest), was_done=False)


def fit(config: TrainConfig, base_uri: str) -> Result:
    """Ray Train starts workers again by itself, but gives up when its controller fails, or dies: then this starts the controller again."""
    num_failures = 0
    while True:
        try:
            return build_trainer(config, base_uri).fit()
        except (ControllerError, RayActorError) as error:
            num_failures += 1
            if 0 <= config.max_failures < num_failures:
                raise
            print(f"starting again after failure {num_failures} of the run's controller: {error}", flush=True)
            time.sleep(RESTART_PAUSE_S)


def build_trainer(config: TrainConfig, base_uri: str, worker: Callable[[dict], object] = train_worker,
                  callbacks: Sequence[UserCallback] = ()) -> TorchTrainer:
    """The Ray Train (V2) trainer of a run. It starts the workers, again after a failure and with other numbers of them; checkpoints are
    ours: workers go on from what is on storage."""
    filesystem, path = open_filesystem(config.storage)
    return TorchTrainer(
        worker,
        train_loop_config={"config": config.model_dump(mode="json"), "base_uri": base_uri},
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers if config.min_workers is None else (config.min_workers, config.num_workers),
            elastic_resize_monitor_interval_s=config.resize_check_s, use_gpu=config.use_gpu, resources_per_worker=worker_bundle(config)),
        run_config=RunConfig(
            name=config.run, storage_path=path, storage_filesystem=filesystem, callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=config.max_failures)))


def _warn_if_short(config: TrainConfig) -> None:
    """A run that does not fit waits for nodes to come; where none will, it waits for ever. Say so."""
    bundles = [*[worker_bundle(config)] * (config.min_workers or config.num_workers), {"CPU": READ_CPUS}]
    if shortage := describe_shortage(bundles, "the run"):
        print(f"waiting for nodes: {shortage}; where no node will join, lower num_workers or cpus_per_worker", flush=True)


def worker_bundle(config: TrainConfig) -> dict[str, float]:
    """Resources of one worker."""
    return {"CPU": config.cpus_per_worker} | ({"GPU": 1.0} if config.use_gpu else {})
