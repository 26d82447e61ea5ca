"""What each training worker does: read, step, log, save, until the last step. Runs inside a Ray Train worker."""

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import ray.train
import torch
import transformers
from torch import distributed
from transformers import PreTrainedModel

from pixellm.data.collate import Collator, MicroBatch, SetAsideCounter
from pixellm.data.mixture import lanes_of_worker
from pixellm.data.prefetch import Prefetcher
from pixellm.data.spans import read_mixture
from pixellm.data.stream import BatchStream
from pixellm.model.packing import unpack_batch
from pixellm.model.processing_pixellm import PixelLMProcessor
from pixellm.revision import git_revision
from pixellm.storage import join_uri, local_copy, open_filesystem
from pixellm.train.checkpoint import (
    RunProgress,
    TrainingCheckpoint,
    checkpoint_name,
    get_random_state,
    read_checkpoint,
    set_random_state,
    upload_checkpoint,
    write_checkpoint,
)
from pixellm.train.config import TrainConfig
from pixellm.train.deepspeed import Engine
from pixellm.train.forward import forward_losses, weighted_loss
from pixellm.train.parameters import parameter_table, select_parameters
from pixellm.train.telemetry import Interval, Telemetry, say

MICRO_BATCHES_AHEAD = 4
SET_ASIDE_SHOWN = 20


def train_worker(settings: dict) -> None:
    """Entry point of a worker. `settings`: `config` (TrainConfig as a dict) and `base_uri`, the model directory to start from."""
    config = TrainConfig.model_validate(settings["config"])
    TrainLoop(config, settings["base_uri"]).run()


class Schedule(Protocol):
    """What decides the learning rate."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def decay(self) -> str: ...


def learning_rate_factor(step: int, config: Schedule) -> float:
    """What the peak learning rates are multiplied by in step `step` (0-based): up linearly over the warm-up, then down to 0 at `steps`."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return 1 - done if config.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def optimiser_step(engine: Engine, batches: list[MicroBatch], config: TrainConfig, factor: float) -> Interval:
    """One optimiser step over this worker's micro-batches: the gradient is that of the whole global batch, however it is cut.

    Text loss is divided by the answer tokens, bce and dice by the masks, of all micro-batches of all workers. Losses and counts of the
    result are sums over all workers' micro-batches where they are counts, and this worker's own share where they are losses.
    """
    counts = torch.tensor([[batch.num_answer_tokens, batch.num_masks, batch.num_photos, batch.num_tokens, len(batch.set_aside)]
                           for batch in batches], dtype=torch.int64).sum(0).to(engine.device)
    distributed.all_reduce(counts)
    interval = Interval(1, 0.0, 0.0, 0.0, *counts.tolist())
    scale = distributed.get_world_size()  # DeepSpeed averages gradients over workers, the losses below are shares of a global mean
    tokens, masks = max(interval.num_answer_tokens, 1), max(interval.num_masks, 1)
    sums = torch.zeros(3, device=engine.device)
    times = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    for batch in batches:
        tensors = unpack_batch(batch.tensors, engine.device)
        started = time.perf_counter()
        losses = forward_losses(engine.forward, tensors, config)
        loss = weighted_loss(losses, config.loss_weights, tokens, masks)
        forwarded = time.perf_counter()
        engine.backward(loss * scale)
        sums += torch.stack([losses.text, losses.bce, losses.dice]).detach()
        backwarded = time.perf_counter()
        norm = engine.step(factor)
        times["forward"] += forwarded - started
        times["backward"] += backwarded - forwarded
        times["optimizer"] += time.perf_counter() - backwarded
    interval.text, interval.bce, interval.dice = sums.tolist()
    interval.gradient_norm = norm if norm is not None else 0.0
    interval.parts_s = times
    return interval


class TrainLoop:
    """One worker's run, from what storage holds to the last step."""

    def __init__(self, config: TrainConfig, base_uri: str):
        context = ray.train.get_context()
        self.config, self.rank, self.num_workers = config, context.get_world_rank(), context.get_world_size()
        transformers.logging.disable_progress_bar()
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        torch.set_num_threads(config.torch_threads)
        if not config.use_gpu:  # fused attention for the CPU is slow with few tokens on one side: 0.41 s a step of `tiny`, 0.33 s without
            torch.backends.cuda.enable_flash_sdp(False)
        torch.manual_seed(config.seed + self.rank)
        np.random.seed(config.seed + self.rank)
        model, processor = load_base(base_uri)
        groups = select_parameters(model, config)
        if self.rank == 0:
            say(parameter_table(model, groups))
        self.saved = self._read_saved()
        self.step = self.saved.progress.step if self.saved else 0
        num_lanes = config.num_workers * config.accumulation
        mixture = read_mixture(((entry.uri, entry.weight) for entry in config.data), config.seed, num_lanes, config.epoch_rows)
        self.position = self.saved.position if self.saved else mixture.start(config.photos_per_micro_step)
        mixture.check(self.position, config.photos_per_micro_step)
        lanes = lanes_of_worker(self.rank, self.num_workers, num_lanes)
        self.engine = Engine(model.train(), groups, config.model_copy(update={"accumulation": len(lanes)}))
        collator = Collator(processor, config.max_conversations_per_photo, config.seed, config.mask_loss_resolution)
        stream = BatchStream(mixture, lanes, self.position, collator, config.data_tasks_per_worker, config.stream_memory_mb)
        self.micro_steps = len(lanes)
        self.batches = Prefetcher(stream, depth=MICRO_BATCHES_AHEAD)
        self._next_batch: Iterator[MicroBatch] = iter(self.batches)
        self._epoch = 0
        self._counter = SetAsideCounter(config.max_rejected_share)
        self.telemetry = None if self.rank else Telemetry(
            config.run_uri, config.run, config.steps, config.loss_weights.model_dump(), first_step=self.step)

    def run(self) -> None:
        """Train to the last step, with a checkpoint at the configured steps and at the end."""
        config, interval = self.config, Interval()
        try:
            while self.step < config.steps:
                started = time.perf_counter()
                batches = [next(self._next_batch) for _ in range(self.micro_steps)]
                waited_s = time.perf_counter() - started
                if self.saved is not None:
                    self._restore(self.saved, batches)
                    self.saved = None
                factor = learning_rate_factor(self.step, config)
                taken = optimiser_step(self.engine, batches, config, factor)
                self.step += 1
                self._note(batches)
                taken.parts_s["data_wait"], taken.wall_s = waited_s, time.perf_counter() - started
                interval.add(taken)
                if self.step % config.log_every_steps == 0 or self.step == config.steps:
                    self._log(interval, factor)
                    interval = Interval()
                if self.step % config.checkpoint_every_steps == 0 or self.step == config.steps:
                    self._save()
        finally:
            self.batches.close()
            if self.telemetry is not None:
                self.telemetry.close()

    def _read_saved(self) -> TrainingCheckpoint | None:
        latest = ray.train.get_checkpoint()
        if latest is None:
            return None
        uri = join_uri(self.config.run_uri, Path(latest.path).name)
        with tempfile.TemporaryDirectory(prefix="pixellm-resume-") as folder:
            saved = read_checkpoint(uri, Path(folder))
        if self.rank == 0:
            say(f"resuming {self.config.run} after step {saved.progress.step} from {uri}")
        return saved

    def _restore(self, saved: TrainingCheckpoint, batches: list[MicroBatch]) -> None:
        """The optimiser has no state before its first step: take one at learning rate 0, then put the saved values in."""
        optimiser_step(self.engine, batches, self.config, factor=0.0)
        self.engine.load_state(saved.state)
        if self.rank < len(saved.random_states):
            set_random_state(saved.random_states[self.rank])

    def _note(self, batches: list[MicroBatch]) -> None:
        self.position = replace(self.position, batches_per_lane=self.position.batches_per_lane + 1)
        self._epoch = batches[-1].consumed[-1][0]
        for batch in batches:
            for each in batch.set_aside[:max(0, SET_ASIDE_SHOWN - self._counter.num_set_aside)]:
                say(f"set aside {each.key}: {each.reason}: {each.detail}")
            self._counter.add(batch)

    def _log(self, interval: Interval, factor: float) -> None:
        """Bring the losses (sums) and times (means) of all workers together; rank 0 writes them."""
        names = sorted(interval.parts_s)
        values = torch.tensor([interval.text, interval.bce, interval.dice] + [interval.parts_s[name] / self.num_workers for name in names],
                              dtype=torch.float64 if not self.config.use_gpu else torch.float32, device=self.engine.device)
        distributed.all_reduce(values)
        if self.telemetry is not None:
            interval.text, interval.bce, interval.dice = values[:3].tolist()
            interval.parts_s = dict(zip(names, values[3:].tolist(), strict=True))
            self.telemetry.write(self.step, interval, factor, epoch=self._epoch)

    def _save(self) -> None:
        """All workers give their part; rank 0 writes, uploads and reports."""
        state = self.engine.gather_state()
        random_states: list = [None] * self.num_workers
        distributed.gather_object(get_random_state(), random_states if self.rank == 0 else None)
        if self.telemetry is None:
            ray.train.report({"step": self.step})
            return
        progress = RunProgress(self.step, state.num_updates, self._epoch, self.num_workers, git_revision())
        with tempfile.TemporaryDirectory(prefix="pixellm-checkpoint-") as folder:
            write_checkpoint(Path(folder), TrainingCheckpoint(progress, state, self.position, random_states, self.config))
            ray.train.report({"step": self.step}, checkpoint=ray.train.Checkpoint.from_directory(folder),
                             checkpoint_dir_name=checkpoint_name(self.step), checkpoint_upload_fn=self._upload,
                             delete_local_checkpoint_after_upload=False)
        self.telemetry.upload()
        say(f"checkpoint {join_uri(self.config.run_uri, checkpoint_name(self.step))}")

    def _upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        uri = join_uri(self.config.run_uri, name)
        upload_checkpoint(Path(checkpoint.path), uri)
        filesystem, path = open_filesystem(uri)
        return ray.train.Checkpoint(path, filesystem)


def load_base(uri: str) -> tuple[PreTrainedModel, PixelLMProcessor]:
    """Model (float32) and processor of a model directory, local or on storage."""
    from pixellm.model import PixelLMForConditionalGeneration

    folder = local_copy(uri)
    return PixelLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), PixelLMProcessor.from_pretrained(folder)
