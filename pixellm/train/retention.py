"""Which checkpoints stay: the newest, and the best by validation. What a validation measured lies beside the checkpoint it is about.

A run asks for the best; whoever validates, in whatever process, calls `record_validation`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pixellm.storage import delete, exists, join_uri, list_files, read_bytes, write_bytes
from pixellm.train.checkpoint import CHECKPOINT_NAME, MANIFEST

VALIDATION = "validation.json"
SCORE = "giou"


@dataclass(frozen=True)
class StoredCheckpoint:
    """A finished checkpoint. `validation`: metrics by name; empty while a validation is under way, None before."""

    uri: str
    step: int
    validation: dict[str, float] | None

    @property
    def score(self) -> float | None:
        """What the best is chosen by."""
        return (self.validation or {}).get(SCORE)


def record_validation(checkpoint_uri: str, metrics: Mapping[str, float]) -> bool:
    """Write what a validation of the checkpoint found; `giou` (0 to 1) decides how good it is.

    Without metrics: a validation is under way, until which the checkpoint stays on storage. False, and nothing is written, when the
    checkpoint is there no longer.
    """
    if not exists(join_uri(checkpoint_uri, MANIFEST)):
        return False
    write_bytes(join_uri(checkpoint_uri, VALIDATION), json.dumps(dict(metrics), indent=1).encode())
    return True


def list_checkpoints(run_uri: str) -> list[StoredCheckpoint]:
    """The finished checkpoints of a run, in the order of their steps."""
    found = []
    for step, (uri, names) in sorted(_checkpoint_folders(run_uri).items()):
        if MANIFEST in names:
            validation = json.loads(read_bytes(join_uri(uri, VALIDATION))) if VALIDATION in names else None
            found.append(StoredCheckpoint(uri, step, validation))
    return found


def find_best_checkpoint(run_uri: str) -> StoredCheckpoint | None:
    """The finished checkpoint of the highest gIoU, the later of two equal ones; None before any was validated."""
    return max((each for each in list_checkpoints(run_uri) if each.score is not None), key=_by_score, default=None)


def remove_unneeded(run_uri: str, keep_last: int, keep_best: int) -> list[str]:
    """Delete all finished checkpoints but the newest, the best, and those being validated; also half-written ones that are older than
    the newest finished. Returns the URIs of what went. Only the process that writes the run's checkpoints may call it.
    """
    finished = list_checkpoints(run_uri)
    if not finished:
        return []
    scored = sorted((each for each in finished if each.score is not None), key=_by_score)
    kept = {each.uri for each in [*finished[-keep_last:], *(scored[-keep_best:] if keep_best else [])]}
    kept |= {each.uri for each in finished if each.validation == {}}
    folders = _checkpoint_folders(run_uri)
    removed = [uri for step, (uri, _) in sorted(folders.items()) if uri not in kept and step <= finished[-1].step]
    for uri in removed:
        delete(join_uri(uri, MANIFEST))  # first: what is deleted in part is not a checkpoint
        delete(uri)
    return removed


def _by_score(checkpoint: StoredCheckpoint) -> tuple[float, int]:
    return checkpoint.score or 0.0, checkpoint.step


def _checkpoint_folders(run_uri: str) -> dict[int, tuple[str, set[str]]]:
    """Of each step whose folder holds any file: the folder, and the names in it."""
    folders: dict[int, tuple[str, set[str]]] = {}
    for file in list_files(run_uri):
        folder, _, name = file.rpartition("/")
        if match := re.search(CHECKPOINT_NAME, folder):
            folders.setdefault(int(match.group(1)), (folder, set()))[1].add(name)
    return folders
