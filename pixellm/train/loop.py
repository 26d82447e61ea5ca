"""What each training worker does: read, step, log, save, until the last step. Runs inside a Ray Train worker."""

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray.train
import torch
import transformers
from ray.train.collective import broadcast_from_rank_zero
from torch import distributed

from pixellm.data.collate import Collator, MicroBatch, SetAsideCounter
from pixellm.data.mixture import lanes_of_worker
from pixellm.data.prefetch import Prefetcher
from pixellm.data.spans import read_mixture
from pixellm.data.stream import BatchStream
from pixellm.errors import ConfigError, DivergedError, ModelError, PixelLMError
from pixellm.revision import git_revision
from pixellm.storage import join_uri, write_bytes
from pixellm.train.base import load_base
from pixellm.train.checkpoint import (
    RunProgress,
    TrainingCheckpoint,
    checkpoint_name,
    find_latest_checkpoint,
    get_random_state,
    read_checkpoint,
    set_random_state,
)
from pixellm.train.config import TrainConfig
from pixellm.train.console import say
from pixellm.train.deepspeed import Engine
from pixellm.train.device import peak_memory_gb
from pixellm.train.guard import StepGuard
from pixellm.train.history import is_over
from pixellm.train.parameters import parameter_table, select_parameters
from pixellm.train.preemption import PreemptionNotice
from pixellm.train.profiling import traced
from pixellm.train.step import learning_rate_factor, optimiser_step
from pixellm.train.telemetry import Interval, Telemetry
from pixellm.train.watchdog import Watchdog, shared_store
from pixellm.train.writer import CheckpointWriter, keep_trying

MICRO_BATCHES_AHEAD = 4
SET_ASIDE_SHOWN = 20


def train_worker(settings: dict) -> PixelLMError | None:
    """Entry point of a worker. `settings`: `config` (TrainConfig as a dict) and `base_uri`, the model directory to start from.

    Returns the error of a run that starting again would not help; all workers meet it alike. Others are raised, and Ray starts again.
    """
    config = TrainConfig.model_validate(settings["config"])
    try:
        TrainLoop(config, settings["base_uri"]).run()
    except (ConfigError, ModelError, DivergedError) as error:
        return error
    return None


class TrainLoop:
    """One worker's run, from what storage holds to the last step."""

    def __init__(self, config: TrainConfig, base_uri: str):
        context = ray.train.get_context()
        self.config, self.rank, self.num_workers = config, context.get_world_rank(), context.get_world_size()
        transformers.logging.disable_progress_bar()
        for noisy in ("ray.data", "botocore"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
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
        self.micro_steps, self.num_lanes = math.ceil(num_lanes / self.num_workers), len(lanes)
        self.engine = Engine(model.train(), groups, config.model_copy(update={"accumulation": self.micro_steps}))
        collator = Collator(processor, config.max_conversations_per_photo, config.seed, config.mask_loss_resolution)
        stream = BatchStream(mixture, lanes, self.position, collator, config.data_tasks_per_worker, config.stream_memory_mb)
        self.batches = Prefetcher(stream, depth=MICRO_BATCHES_AHEAD)
        self._next_batch: Iterator[MicroBatch] = iter(self.batches)
        self._epoch = 0
        self._counter = SetAsideCounter(config.max_rejected_share, **(self.saved.progress.set_aside if self.saved else {}))
        self.guard = StepGuard(config.failures, **(self.saved.progress.guard if self.saved else {}))
        self.telemetry = None if self.rank else Telemetry(config, self.engine.module.config, self.num_workers, first_step=self.step)
        self.writer = None if self.telemetry is None else CheckpointWriter(
            config.run_uri, config.keep_last, config.keep_best, config.failures.storage_patience_s, before=self.telemetry.flush)
        self.preemption = PreemptionNotice()

    def run(self) -> None:
        """Train to the last step, with a checkpoint at the configured steps, before a preemption, and at the end."""
        config, interval = self.config, Interval()
        watchdog = Watchdog(self.rank, self.num_workers, config.failures.step_timeout_s, shared_store(), self._keep_report)
        try:
            while self.step < config.steps:
                watchdog.beat(self.step + 1)
                if self.writer is not None:
                    self.writer.check()
                started = time.perf_counter()
                batches = [next(self._next_batch) for _ in range(self.num_lanes)]
                num_repeated = self.micro_steps - self.num_lanes
                waited_s = time.perf_counter() - started
                if self.saved is not None:
                    self._restore(self.saved, batches + batches[-1:] * num_repeated)
                    self.saved = None
                factor = learning_rate_factor(self.step, config)
                with traced(self.step + 1, config.telemetry.profile_steps if self.rank == 0 else (), config.run_uri):
                    taken = optimiser_step(self.engine, batches + batches[-1:] * num_repeated, config, factor, self.guard, num_repeated,
                                           asks=self.rank == 0 and self.preemption.is_due())
                self.step += 1
                self.guard.note(self.step, taken.total(config.loss_weights.model_dump()), was_taken=not taken.num_skipped)
                self._note(batches, taken)
                taken.parts_s["data_wait"], taken.wall_s = waited_s, time.perf_counter() - started
                interval.add(taken)
                is_last = self.step == config.steps
                if self.step % config.log_every_steps == 0 or is_last:
                    self._log(interval, factor)
                    interval = Interval()
                if leaves := bool(taken.num_asking) and self.preemption.has_come():
                    say(f"rank {self.rank}: a node is about to be taken away, so there is a checkpoint at step {self.step}")
                if self.step % config.checkpoint_every_steps == 0 or is_last or leaves:
                    started = time.perf_counter()
                    self._save(is_urgent=is_last or leaves)
                    if self.telemetry is not None:
                        self.telemetry.write_checkpoint_stall(self.step, time.perf_counter() - started)
                    if self._stops_early():
                        break
            if self.writer is not None:
                self.writer.finish()
        finally:
            watchdog.close()
            self.batches.close()
            if self.writer is not None:
                self.writer.abandon()
            if self.telemetry is not None:
                self.telemetry.close()

    def _read_saved(self) -> TrainingCheckpoint | None:
        """The latest finished checkpoint, as the first worker finds it: what is on storage counts, whoever wrote it."""
        run_uri, patience_s = self.config.run_uri, self.config.failures.storage_patience_s
        found = keep_trying(lambda: find_latest_checkpoint(run_uri), patience_s, f"looking into {run_uri}") if self.rank == 0 else None
        uri = broadcast_from_rank_zero(found)
        if uri is None:
            return None
        with tempfile.TemporaryDirectory(prefix="pixellm-resume-") as folder:
            saved = keep_trying(lambda: read_checkpoint(uri, Path(folder)), patience_s, f"reading {uri}")
        if self.rank == 0:
            say(f"resuming {self.config.run} after step {saved.progress.step} from {uri}")
        return saved

    def _restore(self, saved: TrainingCheckpoint, batches: list[MicroBatch]) -> None:
        """The optimiser has no state before its first step: take one at learning rate 0, then put the saved values in."""
        if optimiser_step(self.engine, batches, self.config, factor=0.0).num_skipped:
            raise DivergedError(f"the loss of step {self.step + 1}, the first after the checkpoint, is no number, so the optimiser cannot "
                                f"be set up; delete {checkpoint_name(self.step)} to go on from an earlier one")
        self.engine.load_state(saved.state)
        if self.rank < len(saved.random_states):
            set_random_state(saved.random_states[self.rank])

    def _note(self, batches: list[MicroBatch], taken: Interval) -> None:
        self.position = replace(self.position, batches_per_lane=self.position.batches_per_lane + 1)
        self._epoch = batches[-1].consumed[-1][0]
        set_aside = [each for batch in batches for each in batch.set_aside]
        for each in set_aside[:max(0, SET_ASIDE_SHOWN - self._counter.num_set_aside)]:
            say(f"set aside {each.key}: {each.reason}: {each.detail}")
        self._counter.add(self.position.num_lanes * self.position.rows_per_batch, taken.num_set_aside, set_aside)

    def _log(self, interval: Interval, factor: float) -> None:
        """Bring the times (means) and memory (maximum) of all workers together; rank 0 writes them."""
        names = sorted(interval.parts_s)
        dtype, device = torch.float32 if self.config.use_gpu else torch.float64, self.engine.device
        values = torch.tensor([interval.parts_s[name] / self.num_workers for name in names], dtype=dtype, device=device)
        memory_gb = torch.tensor(peak_memory_gb(device), dtype=dtype, device=device)
        distributed.all_reduce(values)
        distributed.all_reduce(memory_gb, distributed.ReduceOp.MAX)
        if self.telemetry is not None:
            interval.parts_s = dict(zip(names, values.tolist(), strict=True))
            self.telemetry.write(self.step, interval, factor, epoch=self._epoch, memory_gb=float(memory_gb))

    def _save(self, is_urgent: bool) -> None:
        """All workers give their part and go on; rank 0 writes it in a thread. An urgent one waits until it is complete.

        While the one before is still on its way (storage is slow, or does not answer) one that is not urgent is left out.
        """
        if not self.guard.num_losses:
            return  # no step has changed anything yet
        if broadcast_from_rank_zero(self.writer is not None and self.writer.is_busy and not is_urgent):
            if self.rank == 0:
                say(f"no checkpoint at step {self.step}: the one before is still being uploaded")
            return
        state = self.engine.gather_state()
        random_states: list = [None] * self.num_workers
        distributed.gather_object(get_random_state(), random_states if self.rank == 0 else None)
        if self.writer is None:
            return
        progress = RunProgress(self.step, state.num_updates, self._epoch, self.num_workers, git_revision(), self.guard.state,
                               self._counter.state)
        self.writer.submit(TrainingCheckpoint(progress, state, self.position, random_states, self.config))
        if is_urgent:
            self.writer.finish()

    def _stops_early(self) -> bool:
        """Whether validation has seen no progress for as long as the configuration bears; all workers hear the same."""
        if self.config.validation is None or self.config.validation.patience is None:
            return False
        stops = broadcast_from_rank_zero(self.rank == 0 and is_over(self.config))
        if stops and self.rank == 0:
            say(f"step {self.step}: no better gIoU in {self.config.validation.patience} validated checkpoints, the run stops early")
        return stops

    def _keep_report(self, text: str) -> None:
        write_bytes(join_uri(self.config.run_uri, "hangs", f"step_{self.step + 1:08d}_rank_{self.rank}.txt"), text.encode())
