"""Looks at a run before nodes are spent on it: what it will do, what memory a worker takes, and everything that is missing, at once."""

import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import Field

from pixellm.data.manifest import Manifest, read_manifest
from pixellm.data.mixture import Mixture, lanes_of_worker
from pixellm.data.spans import read_mixture
from pixellm.data.stream import READ_CPUS
from pixellm.errors import ConfigError, ModelError, PixelLMError, StorageError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.presets import LANGUAGE_MODELS, preset_config
from pixellm.resources import count_placed, describe_bundle
from pixellm.settings import StrictModel
from pixellm.storage import delete, exists, join_uri, list_files, read_bytes, write_bytes
from pixellm.train.base import base_uri_of
from pixellm.train.capacity import AssumedNodes, Capacity, find_capacity
from pixellm.train.checkpoint import checkpoint_step, find_latest_checkpoint
from pixellm.train.config import RANDOM_TINY, TrainConfig
from pixellm.train.memory import BatchShape, MemoryEstimate, estimate_memory
from pixellm.train.recommend import estimate_hours, recommend
from pixellm.train.trainer import worker_bundle

STATE_BYTES = 12  # of a trained value in a checkpoint: itself and Adam's two moments, in float32
T = TypeVar("T")


class Assumed(StrictModel):
    """What a dry run cannot look up: how long conversations are, and how large a GPU is."""

    text_tokens: int = Field(default=256, gt=0, description="of the longest conversation, beside its photo's and its targets'")
    targets: int = Field(default=8, ge=0, description="of each conversation of a micro-batch; MUSE has 3.7 on average and up to 34")
    gpu_memory_gb: float | None = Field(default=None, gt=0, description="of one GPU, 1e9 bytes; a larger estimate is a problem")
    nodes: tuple[AssumedNodes, ...] = Field(default=(), description="{count, cpus, gpus, memory_gb, gpu_memory_gb, price_per_hour} of each "
                                            "kind of node, instead of the cluster's own")
    mfu: float = Field(default=0.35, gt=0, le=1, description="share of telemetry.peak_tflops that training reaches, for hours and cost")


@dataclass
class DryRun:
    """Lines for people, and the problems that would stop the run or let it wait for ever."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    memory: MemoryEstimate | None = None

    def attempt(self, look: Callable[..., T], *arguments: object) -> T | None:
        """The result of `look`, or None and its error as one more problem."""
        try:
            return look(*arguments)
        except PixelLMError as error:
            self.problems.append(str(error))
            return None

    def report(self) -> str:
        """Everything, the problems last."""
        end = [f"problem: {problem}" for problem in self.problems] or ["nothing would stop it"]
        return "\n".join(f"  {line}" for line in [*self.lines, *end])


def dry_run(config: TrainConfig, assumed: Assumed) -> DryRun:
    """Looks at model, memory, data, storage and cluster of `config`. A Ray cluster must be connected; no worker starts."""
    found = DryRun()
    capacity = find_capacity(assumed.nodes, config.num_workers)
    if assumed.gpu_memory_gb is None:
        assumed = assumed.model_copy(update={"gpu_memory_gb": capacity.gpu_memory_gb})
    architecture = found.attempt(_look_at_model, config, found)
    if architecture is not None:
        found.memory = found.attempt(_look_at_memory, architecture, config, assumed, found)
        found.attempt(_look_at_time, architecture, config, assumed, capacity, found)
    _look_at_data(config, found)
    found.attempt(_look_at_storage, config, found)
    found.attempt(_look_at_deepspeed, config)
    _look_at_cluster(config, capacity, found)
    return found


def _look_at_model(config: TrainConfig, found: DryRun) -> PixelLMConfig:
    """The architecture. A preset's name stands for it while there are no weights yet, which is a problem of its own."""
    if config.model == RANDOM_TINY:
        return preset_config("tiny")
    if config.model in LANGUAGE_MODELS:
        found.problems.append(f"model={config.model} is an architecture without weights, enough for this estimate; make a model directory "
                              "with jobs.convert_checkpoint from_llava=… and give its URI")
        return preset_config(config.model)
    uri = base_uri_of(config)
    if not exists(join_uri(uri, "config.json")):
        raise ModelError(f"model={config.model} holds no config.json; give a model directory, or {', '.join(LANGUAGE_MODELS)} for an "
                         "estimate without weights")
    if not any(file.endswith(".safetensors") for file in list_files(uri)):
        found.problems.append(f"model={config.model} holds no .safetensors; copy its weights there")
    if not exists(join_uri(uri, "processor_config.json")):
        found.problems.append(f"model={config.model} holds no processor_config.json; copy its processor there")
    try:
        return PixelLMConfig.from_dict(json.loads(read_bytes(join_uri(uri, "config.json"))))
    except PixelLMError:
        raise
    except Exception as error:  # not JSON, or of another kind of model
        raise ModelError(f"{join_uri(uri, 'config.json')} does not make a model's configuration ({' '.join(str(error).split())[:300]}); "
                         "fetch it again") from None


def _look_at_memory(architecture: PixelLMConfig, config: TrainConfig, assumed: Assumed, found: DryRun) -> MemoryEstimate:
    shape = _shape(config, assumed)
    estimate = estimate_memory(architecture, config, shape)
    length = shape.num_tokens(architecture)
    found.lines += [*estimate.table.splitlines(), "",
                    f"memory of one worker: {shape.photos} photos x {shape.conversations_per_photo} conversations of {length} tokens and "
                    f"{shape.targets} targets, {config.precision}, ZeRO-{config.zero_stage} of {config.num_workers}"
                    f"{', gradient checkpointing' if config.gradient_checkpointing else ''}"]
    found.lines += [f"  {line}" for line in estimate.lines()]
    limit = assumed.gpu_memory_gb
    if limit is not None and estimate.total > limit * 1e9:
        found.problems.append(
            f"a worker needs {estimate.total / 1e9:.1f} GB, assume.gpu_memory_gb is {limit:g}; lower photos_per_micro_step and raise "
            "accumulation by as much, set gradient_checkpointing=true, a higher zero_stage, or offload=[optimizer]")
    if limit is not None and config.use_gpu:
        found.lines.append(recommend(architecture, config, shape, limit))
    return estimate


def _shape(config: TrainConfig, assumed: Assumed) -> BatchShape:
    return BatchShape(config.photos_per_micro_step, config.max_conversations_per_photo, assumed.text_tokens, assumed.targets)


def _look_at_time(architecture: PixelLMConfig, config: TrainConfig, assumed: Assumed, capacity: Capacity, found: DryRun) -> None:
    hours = estimate_hours(architecture, config, _shape(config, assumed), assumed.mfu)
    price = capacity.price_of([worker_bundle(config)] * config.num_workers)
    if hours is not None:
        cost = "" if price is None else f", {hours * price:,.0f} at {price:,.2f} an hour"
        found.lines.append(f"about {hours:,.1f} hours at {assumed.mfu:.0%} of {config.telemetry.peak_tflops:g} TFLOP/s a worker{cost}")
    elif price is not None:
        found.lines.append(f"{price:,.2f} an hour; with telemetry.peak_tflops hours and cost are told too")


def _look_at_data(config: TrainConfig, found: DryRun) -> None:
    manifests = [found.attempt(read_manifest, entry.uri) for entry in config.data]
    for entry, manifest in zip(config.data, manifests, strict=True):
        if manifest is not None:
            found.lines.append(_describe_set(entry.uri, entry.weight, manifest))
    num_lanes = config.num_workers * config.accumulation
    found.attempt(lanes_of_worker, 0, config.num_workers, num_lanes)
    photos = num_lanes * config.photos_per_micro_step
    found.lines.append(f"{config.steps:,} steps of {photos:,} photos ({config.num_workers} workers x {config.accumulation} micro-steps x "
                       f"{config.photos_per_micro_step}), {config.warmup_steps:,} of them warm-up, then {config.decay} decay")
    if all(manifest is not None for manifest in manifests):
        mixture: Mixture | None = found.attempt(
            read_mixture, [(entry.uri, entry.weight) for entry in config.data], config.seed, num_lanes, config.epoch_rows)
        if mixture is not None:
            epochs = config.steps * photos / mixture.rows_per_epoch
            found.lines.append(f"{epochs:.2f} epochs of {mixture.rows_per_epoch:,} rows: " + ", ".join(
                f"{rows:,} of {each.uri}" for each, rows in zip(mixture.sets, mixture.rows_of_set, strict=True)))


def _describe_set(uri: str, weight: float | None, manifest: Manifest) -> str:
    per_question = manifest.num_targets / max(manifest.num_conversations, 1)
    share = "" if weight is None else f", weight {weight:g}"
    return (f"{uri}: {manifest.num_rows:,} rows, {manifest.num_conversations:,} questions, {per_question:.1f} targets each, "
            f"{manifest.num_bytes / 1e9:.2f} GB in {len(manifest.shards)} shards{share}")


def _look_at_storage(config: TrainConfig, found: DryRun) -> None:
    """Writes, reads and deletes an object where checkpoints go, and says what will lie there."""
    latest = find_latest_checkpoint(config.run_uri)
    if latest is not None:
        done = checkpoint_step(latest)
        found.lines.append(f"it goes on after step {done:,} from {latest}" if done < config.steps else f"it is done: {latest}")
    every = config.checkpoint_every_steps
    size = "" if found.memory is None else f" of about {found.memory.num_trained * STATE_BYTES / 1e9:.2f} GB"
    found.lines.append(f"checkpoints every {every:,} steps, {-(-config.steps // every):,} in all{size}, in {config.run_uri}")
    probe, content = join_uri(config.storage, f"probe-{uuid.uuid4().hex}"), str(time.time()).encode()
    write_bytes(probe, content)
    try:
        if read_bytes(probe) != content:
            raise StorageError(f"{probe}: what was read is not what was written; is there a cache between?")
    finally:
        delete(probe)


def _look_at_deepspeed(config: TrainConfig) -> None:
    """DeepSpeed's own check of a raw piece. Raises ConfigError."""
    if not config.deepspeed:
        return
    from pixellm.train.deepspeed import import_deepspeed

    deepspeed = import_deepspeed(config.use_gpu)
    try:
        deepspeed.DeepSpeedConfig(config.to_deepspeed())
    except Exception as error:
        raise ConfigError(f"DeepSpeed refuses `deepspeed`: {' '.join(str(error).split())[:400]}") from None


def _look_at_cluster(config: TrainConfig, capacity: Capacity, found: DryRun) -> None:
    """Tell whether all workers and their reading fit on the nodes that there can be, and their batches into the object store."""
    nodes = capacity.nodes
    total = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU", "object_store_memory")}
    store = "" if math.isinf(total["object_store_memory"]) else f", {total['object_store_memory'] / 1e9:.1f} GB object store"
    found.lines.append(f"cluster ({capacity.origin}): {len(nodes)} nodes, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs{store}")
    per_worker = worker_bundle(config)
    fitting = count_placed([per_worker] * config.num_workers, nodes)
    asked = describe_bundle(per_worker)
    least = config.min_workers or config.num_workers
    if fitting < least:
        found.problems.append(f"the cluster has room for {fitting} workers of {asked}, the run asks for {least}; add nodes, or lower "
                              "num_workers and raise accumulation by as much")
    elif fitting < config.num_workers:
        found.lines.append(f"it begins with the {fitting} workers that there is room for; num_workers is {config.num_workers}")
    needed = least * config.cpus_per_worker + READ_CPUS
    if needed > total["CPU"]:
        found.problems.append(f"workers and the reading of data need {needed:g} CPUs, the cluster has {total['CPU']:g}; lower "
                              "cpus_per_worker, or add nodes")
    streamed = config.num_workers * config.stream_memory_mb * 1e6
    if streamed > total["object_store_memory"]:
        found.problems.append(f"batches that wait take {streamed / 1e9:.1f} GB ({config.num_workers} x stream_memory_mb), the object "
                              f"stores hold {total['object_store_memory'] / 1e9:.1f} GB; lower stream_memory_mb")
