"""What a checkpoint is on storage: full fp32 tensors by name, where the run and its data stand, and a manifest written last.

Knows files, not engines. Tensors are safetensors and everything else is JSON or YAML: no pickle is ever written or opened.
"""

import hashlib
import json
import random
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixellm.data.mixture import DataPosition
from pixellm.errors import StorageError
from pixellm.model.side_files import describe_damage
from pixellm.settings import build_config, read_values
from pixellm.storage import delete, download_files, exists, join_uri, list_files, read_bytes, upload_folder, write_bytes
from pixellm.train.config import TrainConfig
from pixellm.train.deepspeed import MOMENTS, TrainedState

MANIFEST = "manifest.json"
PARAMETERS, OPTIMIZER, RANDOM = "parameters.safetensors", "optimizer.safetensors", "random.safetensors"
PROGRESS, POSITION, CONFIG = "progress.json", "position.json", "config.yaml"
CHECKPOINT_NAME = re.compile(r"checkpoint_(\d+)$")


@dataclass(frozen=True)
class RunProgress:
    """Where a run stands: `step` optimiser steps are done, `num_updates` of them changed the weights; `git_revision` of the code that
    did them, if it is known; `guard` and `set_aside` are the states of the StepGuard and the SetAsideCounter."""

    step: int
    num_updates: int
    epoch: int
    num_workers: int
    git_revision: str | None = None
    guard: dict[str, Any] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingCheckpoint:
    """All that a resumed run needs. `random_states[rank]` holds that worker's states (uint8 / int64 tensors by name)."""

    progress: RunProgress
    state: TrainedState
    position: DataPosition
    random_states: list[dict[str, Tensor]]
    config: TrainConfig


@dataclass(frozen=True)
class TrainedWeights:
    """What a model of a checkpoint is made of: full float32 values by parameter name."""

    progress: RunProgress
    parameters: dict[str, Tensor]
    config: TrainConfig


def checkpoint_name(step: int) -> str:
    """Folder of the checkpoint after `step` optimiser steps; names sort as steps do."""
    return f"checkpoint_{step:08d}"


def write_checkpoint(folder: Path, checkpoint: TrainingCheckpoint) -> None:
    """Write all files below `folder`, the manifest with their sizes and SHA-256 last."""
    folder.mkdir(parents=True, exist_ok=True)
    moments, random_states = checkpoint.state.moments, enumerate(checkpoint.random_states)
    save_file(checkpoint.state.parameters, folder / PARAMETERS)
    save_file({f"{moment}.{name}": value for moment in MOMENTS for name, value in moments[moment].items()}, folder / OPTIMIZER)
    save_file({f"{rank}.{name}": value for rank, states in random_states for name, value in states.items()}, folder / RANDOM)
    (folder / PROGRESS).write_text(json.dumps(vars(checkpoint.progress), indent=1))
    (folder / POSITION).write_text(checkpoint.position.to_json())
    (folder / CONFIG).write_text(yaml.safe_dump(checkpoint.config.model_dump(mode="json"), sort_keys=False))
    written = [file for file in sorted(folder.iterdir()) if file.name != MANIFEST]
    files = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in written}
    (folder / MANIFEST).write_text(json.dumps({"step": checkpoint.progress.step, "files": files}, indent=1))


def upload_checkpoint(folder: Path, uri: str) -> None:
    """Copy a written checkpoint to `uri`: its files in parallel, and after them the manifest. May be called again after it failed."""
    delete(join_uri(uri, MANIFEST))  # of a checkpoint that stood there: while files are replaced it is not whole
    upload_folder(folder, uri, leave_out=MANIFEST)
    write_bytes(join_uri(uri, MANIFEST), (folder / MANIFEST).read_bytes())


def read_checkpoint(uri: str, folder: Path) -> TrainingCheckpoint:
    """Fetch the checkpoint at `uri` into `folder` and read it. Raises StorageError when it is incomplete or its checksums do not hold."""
    fetch_checkpoint(uri, folder)
    weights = _read_weights(uri, folder)
    progress = weights.progress
    stored = load_file(folder / OPTIMIZER)
    moments = {moment: {name.removeprefix(f"{moment}."): value for name, value in stored.items() if name.startswith(f"{moment}.")}
               for moment in MOMENTS}
    random_states: list[dict[str, Tensor]] = [{} for _ in range(progress.num_workers)]
    for name, value in load_file(folder / RANDOM).items():
        rank, _, key = name.partition(".")
        random_states[int(rank)][key] = value
    return TrainingCheckpoint(
        progress, TrainedState(weights.parameters, moments, progress.num_updates),
        DataPosition.from_json((folder / POSITION).read_text()), random_states, weights.config)


def read_trained(uri: str, folder: Path) -> TrainedWeights:
    """Fetch into `folder` and read what a model is made of, a third of the checkpoint. Raises StorageError like `read_checkpoint`."""
    fetch_checkpoint(uri, folder, (PARAMETERS, PROGRESS, CONFIG))
    return _read_weights(uri, folder)


def _read_weights(uri: str, folder: Path) -> TrainedWeights:
    progress, config = read_about(uri, folder)
    return TrainedWeights(progress, load_file(folder / PARAMETERS), config)


def read_about(uri: str, folder: Path) -> tuple[RunProgress, TrainConfig]:
    """The progress and the configuration of the run whose checkpoint at `uri` was fetched into `folder`."""
    return (RunProgress(**json.loads((folder / PROGRESS).read_text())),
            build_config(TrainConfig, read_values(folder / CONFIG), where=join_uri(uri, CONFIG)))


def fetch_checkpoint(uri: str, folder: Path, names: Collection[str] | None = None) -> None:
    """Download the files of a checkpoint, or those of `names`, and check each against the manifest. Raises StorageError."""
    files = read_manifest(uri)["files"]
    names = files.keys() if names is None else names
    download_files(uri, names, folder)
    for name, expected in ((name, files[name]) for name in names):
        if not (folder / name).is_file() or _sha256(folder / name) != expected["sha256"]:
            raise StorageError(f"{join_uri(uri, name)} is not what its manifest says (checksum); delete {uri} to use an earlier checkpoint")


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises StorageError for a folder without one, which was never finished, and for one that is damaged."""
    if not exists(join_uri(uri, MANIFEST)):
        raise StorageError(f"{uri} has no {MANIFEST}: it is not a finished checkpoint; give the folder of one, or of a run")
    data = read_bytes(join_uri(uri, MANIFEST))
    try:
        manifest = json.loads(data)
        if all(isinstance(entry["sha256"], str) for entry in manifest["files"].values()):
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    found = describe_damage(data) or "not the manifest of a checkpoint"
    raise StorageError(f"{join_uri(uri, MANIFEST)} is {found}; fetch it again, or delete {uri} to use an earlier checkpoint")


def find_latest_checkpoint(run_uri: str) -> str | None:
    """The finished checkpoint with the highest step below `run_uri`, None when there is none."""
    finished = [file.rpartition("/")[0] for file in list_files(run_uri, suffix=f"/{MANIFEST}")]
    named = {int(match.group(1)): uri for uri in finished if (match := CHECKPOINT_NAME.search(uri))}
    return named[max(named)] if named else None


def checkpoint_step(uri: str) -> int:
    """Optimiser steps done at a finished checkpoint."""
    return int(read_manifest(uri)["step"])


def get_random_state() -> dict[str, Tensor]:
    """States of torch, numpy and Python generators of this process as tensors."""
    numpy_state = np.random.get_state(legacy=False)["state"]  # type: ignore[call-overload]
    states = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.append(numpy_state["key"].astype(np.int64), numpy_state["pos"])),
              "python": torch.tensor(random.getstate()[1], dtype=torch.int64)}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    """What `get_random_state` returned."""
    torch.set_rng_state(states["torch"])
    keys = states["numpy"].numpy()
    np.random.set_state({"bit_generator": "MT19937", "state": {"key": keys[:-1].astype(np.uint32), "pos": int(keys[-1])}})
    random.setstate((3, tuple(states["python"].tolist()), None))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
