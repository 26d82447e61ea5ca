"""Checkpoints beside training: a thread writes, uploads and cleans up, while the next steps are taken. Rank 0 only."""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pixellm.errors import StorageUnavailableError
from pixellm.storage import join_uri
from pixellm.train.checkpoint import TrainingCheckpoint, checkpoint_name, upload_checkpoint, write_checkpoint
from pixellm.train.console import say
from pixellm.train.retention import remove_unneeded

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
ABANDON_TIMEOUT_S = 20.0

T = TypeVar("T")


def keep_trying(function: Callable[[], T], patience_s: float, what: str) -> T:
    """`function()`, again and again while the storage does not answer, for `patience_s`. Raises StorageUnavailableError after that."""
    deadline, pause_s = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return function()
        except StorageUnavailableError as error:
            left_s = deadline - time.monotonic()
            if left_s < pause_s:
                raise
            say(f"{what}: trying again for {left_s:.0f} s: {error}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class CheckpointWriter:
    """One checkpoint at a time. What goes wrong in the thread is raised by the next call.

    `before` is called in the thread before a checkpoint goes to storage: what belongs to its steps is there when it is complete.
    """

    def __init__(self, run_uri: str, keep_last: int, keep_best: int, patience_s: float, before: Callable[[], None]):
        self.run_uri, self.keep_last, self.keep_best, self.patience_s, self.before = run_uri, keep_last, keep_best, patience_s, before
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is still on its way."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, checkpoint: TrainingCheckpoint) -> None:
        """Begin to write `checkpoint`, which must not change any more; waits for the one before."""
        self.finish()
        self._thread = threading.Thread(target=self._run, args=(checkpoint,), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what went wrong in the thread."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait until nothing is on its way. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def abandon(self) -> None:
        """At the end of a run that failed elsewhere: give a checkpoint that is on its way a moment. Raises nothing."""
        if self._thread is not None:
            self._thread.join(ABANDON_TIMEOUT_S)

    def _run(self, checkpoint: TrainingCheckpoint) -> None:
        try:
            self._write(checkpoint)
        except BaseException as error:  # handed to the training thread
            self._error = error

    def _write(self, checkpoint: TrainingCheckpoint) -> None:
        uri = join_uri(self.run_uri, checkpoint_name(checkpoint.progress.step))
        keep_trying(self.before, self.patience_s, f"what goes before {uri}")
        with tempfile.TemporaryDirectory(prefix="pixellm-checkpoint-") as folder:
            write_checkpoint(Path(folder), checkpoint)
            keep_trying(lambda: upload_checkpoint(Path(folder), uri), self.patience_s, f"upload of {uri}")
        say(f"checkpoint {uri}")
        keep_trying(lambda: remove_unneeded(self.run_uri, self.keep_last, self.keep_best), self.patience_s, "removing old checkpoints")
