"""A checkpoint as the model that it is of: its base with the trained values in place."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pixellm.errors import ModelError, StorageError
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.train.base import base_uri_of, load_base
from pixellm.train.checkpoint import TrainedWeights, find_latest_checkpoint, read_manifest, read_trained
from pixellm.train.parameters import add_adapters, merge_adapters
from pixellm.train.retention import find_best_checkpoint


@dataclass(frozen=True)
class RestoredModel:
    """`model` in eval mode, adapters merged."""

    model: PixelLMForConditionalGeneration
    processor: PixelLMProcessor
    weights: TrainedWeights


def resolve_checkpoint(uri: str, best: bool = False) -> str:
    """The checkpoint at `uri`, or of the run whose folder it is the latest finished one, or the best by validation.

    Raises StorageError when there is none.
    """
    try:
        read_manifest(uri)
        return uri
    except StorageError:
        if best:
            found = find_best_checkpoint(uri)
            if found is None:
                raise StorageError(f"{uri} holds no validated checkpoint; give the run `validation`, or take its latest") from None
            return found.uri
        latest = find_latest_checkpoint(uri)
        if latest is None:
            raise StorageError(f"{uri} holds no finished checkpoint; give the folder of a run, or of one of its checkpoints") from None
        return latest


def restore_model(checkpoint_uri: str, dtype: torch.dtype = torch.float32) -> RestoredModel:
    """The model of a checkpoint, in `dtype` on the CPU. Raises StorageError, and ModelError when base and checkpoint do not fit."""
    with tempfile.TemporaryDirectory(prefix="pixellm-restore-") as folder:
        weights = read_trained(checkpoint_uri, Path(folder))
    config = weights.config
    model, processor = load_base(base_uri_of(config), dtype)
    if config.lora is not None:
        add_adapters(model.language_model, config.lora)
    put_values(model, weights.parameters, f"{checkpoint_uri} holds", config.model)
    if config.lora is not None:
        merge_adapters(model.language_model)
    return RestoredModel(model.eval(), processor, weights)


@torch.no_grad()
def put_values(model: nn.Module, values: dict[str, Tensor], what: str, base: str) -> None:
    """Copy `values` into the parameters of their names. Raises ModelError for one that the model has not."""
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise ModelError(f"{what} {name} {tuple(value.shape)}, which its base {base!r} has not; "
                             f"put the model that the run started from back in its place")
        parameters[name].copy_(value)
