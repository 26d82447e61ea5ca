"""Validation beside training: each finished checkpoint answers held-out questions in a Ray task of its own.

A thread of the job looks at storage for checkpoints that have no result beside them, so a job that is started again goes on by itself; what
training does with its workers does not matter. One that fails is told, counted and recorded; it never stops the training. The history lies
in the run's folder, since checkpoints come and go: by it training decides to stop early.
"""

import functools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray
import torch
from PIL import Image
from ray.util import placement_group, remove_placement_group

from pixellm.data.stream import READ_CPUS
from pixellm.evaluation.evaluate import EvaluateConfig, evaluate, photo_key, read_photos
from pixellm.evaluation.pictures import draw_comparison
from pixellm.evaluation.report import choose_examples
from pixellm.inference.batch import check_failures
from pixellm.inference.segmenter import Segmenter
from pixellm.photos import load_photo
from pixellm.train.config import TrainConfig
from pixellm.train.console import format_duration, say
from pixellm.train.history import History
from pixellm.train.reporting import ValidationSettings
from pixellm.train.restore import restore_model
from pixellm.train.retention import SCORE, StoredCheckpoint, list_checkpoints, record_validation
from pixellm.train.sinks import build_sinks

POLL_S = 2.0


@dataclass(frozen=True)
class Validated:
    """What a task gives back. `metrics` are plain figures; `pictures` show answers beside the truth."""

    metrics: dict[str, float]
    pictures: list[Image.Image] = field(default_factory=list)


def validate_checkpoint(checkpoint_uri: str, settings: ValidationSettings, seed: int) -> Validated:
    """Answers the questions of `settings.shards` with a checkpoint's model, on actors. Raises TooManyRejectedError, and as `evaluate`."""
    config = EvaluateConfig.model_validate(
        settings.model_dump(exclude={"timeout_s", "num_pictures", "patience"})
        | {"output": checkpoint_uri, "seed": seed, "device": "cuda" if settings.gpus_per_worker else "cpu"})
    evaluation = evaluate(config, functools.partial(build_segmenter, checkpoint_uri, config), progress=lambda line: None)
    check_failures(evaluation.failures, evaluation.num_photos, config.max_failed_share)
    overall = evaluation.metrics.all
    metrics = {"giou": overall.giou, "ciou": overall.ciou, "wrong_count_share": overall.num_wrong_count / max(overall.num_questions, 1),
               "failed_photos": len(evaluation.failures), "duration_s": evaluation.duration_s}
    examples = choose_examples(evaluation.answers, settings.num_pictures, "random", seed)["random"]
    photos = read_photos(settings.shards, {photo_key(answer.record) for answer in examples})
    pictures = [draw_comparison(load_photo(photos[photo_key(answer.record)]), answer) for answer in examples]
    return Validated({name: float(value) for name, value in metrics.items() if value is not None}, pictures)


def build_segmenter(checkpoint_uri: str, config: EvaluateConfig) -> Segmenter:
    """The model of a checkpoint, in the process that answers."""
    if config.torch_threads:
        torch.set_num_threads(config.torch_threads)
    restored = restore_model(checkpoint_uri, getattr(torch, config.dtype))
    return Segmenter(restored.model.to(config.device), restored.processor, config.engine)


class Validator:
    """The thread. One validation at a time, of the newest checkpoint that has none; older ones follow while there is time."""

    def __init__(self, config: TrainConfig):
        assert config.validation is not None
        self.config, self.settings = config, config.validation
        self.sinks = build_sinks(config, "validation")
        self._training_ended, self._aborted = threading.Event(), threading.Event()
        self._is_waiting_told = False
        self._thread = threading.Thread(target=self._run, name="validation", daemon=True)
        self._thread.start()

    def close(self, has_failed: bool) -> None:
        """Validate what is left, unless the training `has_failed`: its next start will."""
        if has_failed:
            self._aborted.set()
        self._training_ended.set()
        self._thread.join()
        self.sinks.close()

    def _run(self) -> None:
        while not self._aborted.is_set():
            ended = self._training_ended.is_set()  # before looking: the last checkpoint is there when it is set
            try:
                if self._waiting() and (ended or self._has_room()):
                    self._validate(self._waiting()[-1])
                    continue
            except Exception as error:  # above all a storage that does not answer; the next round asks again
                say(f"validation: {type(error).__name__}: {error}")
            if ended:
                return
            self._training_ended.wait(POLL_S)

    def _waiting(self) -> list[StoredCheckpoint]:
        """Checkpoints without a result; also one whose validation was under way when the job ended."""
        return [each for each in list_checkpoints(self.config.run_uri) if not each.validation]

    def _has_room(self) -> bool:
        """Waits until the cluster has what a validation takes besides the training. Asking for it also brings nodes that scale up.

        Without that, the time of waiting would count as the validation's own. False when the training has ended meanwhile.
        """
        settings = self.settings
        worker = {"CPU": settings.cpus_per_worker} | ({"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {})
        room = placement_group([worker] * settings.num_workers + [{"CPU": READ_CPUS}])
        try:
            while not ray.wait([room.ready()], timeout=POLL_S)[0]:
                if self._training_ended.is_set():
                    return False
                if not self._is_waiting_told:
                    self._is_waiting_told = True
                    say(f"validation waits: it needs {settings.num_workers} x {worker} and {READ_CPUS:g} CPU besides the training; "
                        "without more nodes it runs when the training has ended")
            return True
        finally:
            remove_placement_group(room)

    def _validate(self, checkpoint: StoredCheckpoint) -> None:
        if not record_validation(checkpoint.uri, {}):
            return  # removed meanwhile
        history, started = History.read(self.config.run_uri), time.monotonic()
        task = ray.remote(validate_checkpoint).options(num_cpus=0, max_retries=0).remote(checkpoint.uri, self.settings, self.config.seed)
        try:
            result = self._wait(task, started)
        except Exception as error:
            if self._aborted.is_set():
                return
            cause = getattr(error, "cause", None) or error
            say(f"validation of step {checkpoint.step} failed after {format_duration(time.monotonic() - started)}: "
                f"{type(cause).__name__}: {cause}")
            result = Validated({"failed": 1.0})
        record_validation(checkpoint.uri, result.metrics)
        history.add(checkpoint.step, result.metrics)
        self._publish(checkpoint.step, result, history)

    def _wait(self, task: ray.ObjectRef, started: float) -> Validated:
        """Cancels only a task that still runs: Ray 2.60 ends the whole driver where one is cancelled whose error has just arrived."""
        while not ray.wait([task], timeout=POLL_S)[0]:
            is_late = time.monotonic() - started > self.settings.timeout_s
            if is_late or self._aborted.is_set():
                ray.cancel(task, force=True)
                raise TimeoutError(f"took longer than validation.timeout_s, {self.settings.timeout_s:g} s") if is_late else InterruptedError
        return ray.get(task)

    def _publish(self, step: int, result: Validated, history: History) -> None:
        figures = result.metrics | {"failures": history.num_failures}
        if SCORE in result.metrics:
            best_step, best = max(history.scores, key=lambda each: (each[1], each[0]))
            figures["best_giou"] = best
            say(f"validation of step {step}: gIoU {result.metrics[SCORE]:.3f}, cIoU {result.metrics.get('ciou', 0.0):.3f}; "
                f"the best is step {best_step:.0f}, {best:.3f}")
        self.sinks.write(step, {f"validation/{name}": value for name, value in figures.items()})
        for number, picture in enumerate(result.pictures):
            self.sinks.write_picture(step, f"validation/example_{number}", picture)
        self.sinks.flush()


@contextmanager
def validating(config: TrainConfig) -> Iterator[None]:
    """Validates the checkpoints of a run while what is inside trains, and the last ones after it. Nothing where none is asked for."""
    if config.validation is None:
        yield
        return
    validator, has_failed = Validator(config), True
    try:
        yield
        has_failed = False
    finally:
        validator.close(has_failed)
