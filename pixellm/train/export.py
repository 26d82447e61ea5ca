"""A checkpoint to one Hugging Face directory that needs neither run nor base, or to its adapters alone; with a card about it."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from pixellm.data.manifest import read_manifest
from pixellm.errors import ConfigError, ModelError, PixelLMError
from pixellm.model import PixelLMProcessor
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.tensor_plan import Plan, TensorSource, list_tensors, write_model
from pixellm.storage import delete, exists, file_sizes, join_uri, list_files, local_copy, open_filesystem, read_bytes, upload_folder
from pixellm.train.adapters import write_adapters
from pixellm.train.base import base_uri_of
from pixellm.train.checkpoint import CONFIG, PARAMETERS, PROGRESS, RunProgress, fetch_checkpoint, read_about, read_trained
from pixellm.train.config import TrainConfig
from pixellm.train.retention import VALIDATION

WORKING_BYTES = 1e9  # of the task, beside tensors
MERGE_BYTES = 2.5e9  # libraries, a shard of the output, and the largest tensor of 13b (0.66 GB in float32) twice

CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [pixellm, reasoning-segmentation]
---
# {run}, step {step}

A PixelLM: a photo and a question go in, a sentence and one mask per thing it names come out.
Trained for {step} optimiser steps by {num_workers} workers, starting from `{model}`{revision}.

{use}

## Held-out questions
{metrics}

## Data
{data}

## Configuration of the run
```yaml
{config}```
"""
USE_MODEL = '''```python
from pixellm.inference.segmenter import Segmenter

segmenter = Segmenter.from_pretrained("path or URI of this folder")
print(segmenter.segment(photo, "Which of these can roll?").text)
```'''
USE_ADAPTERS = '''Only what was trained is in this folder; it goes onto `{model}`:

```python
from pixellm.inference.segmenter import Segmenter
from pixellm.train.adapters import load_adapters

segmenter = Segmenter(*load_adapters("path or URI of this folder"))
```'''


def check_push_target(uri: str) -> None:
    """Raises ConfigError for what is neither a path nor a bucket, so for a name on a hub: nothing is ever sent there."""
    if "://" in uri:
        open_filesystem(uri)
    elif not uri.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"push={uri} may be a name on a hub, and nothing is sent to hubs; write ./{uri} for a folder, "
                          f"or s3://BUCKET/{uri.rpartition('/')[2]}")


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    run: str
    step: int


def export_checkpoint(checkpoint_uri: str, output_uris: Sequence[str], dtype: torch.dtype = torch.float32,
                      adapters_only: bool = False) -> Exported:
    """Write model, processor and card to each of `output_uris`, adapters merged; or what was trained, alone.

    Tensors are read and written one by one: memory holds one shard of the output, or with `adapters_only` what was trained.
    Raises ModelError when base and checkpoint do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="pixellm-export-") as folder:
        fetched, written = Path(folder) / "checkpoint", Path(folder) / "model"
        written.mkdir()
        if adapters_only:
            weights = read_trained(checkpoint_uri, fetched)
            progress, config = weights.progress, weights.config
            write_adapters(written, weights, dtype)
        else:
            fetch_checkpoint(checkpoint_uri, fetched, (PARAMETERS, PROGRESS, CONFIG))
            progress, config = read_about(checkpoint_uri, fetched)
            _write_merged(config, fetched, checkpoint_uri, written, dtype)
        metrics = _read_metrics(checkpoint_uri)
        (written / "README.md").write_text(_model_card(progress, config, metrics, adapters_only))
        about = {"run": config.run, **vars(progress), "validation": metrics, "data": _data_versions(config)}
        (written / "training.json").write_text(json.dumps(about, indent=1))
        for uri in output_uris:
            upload_folder(written, uri)
            if not adapters_only:
                _delete_old_weights(uri, written)
    return Exported(config.run, progress.step)


def export_memory(checkpoint_uri: str, adapters_only: bool) -> float:
    """Bytes to reserve for `export_checkpoint`."""
    if not adapters_only:
        return MERGE_BYTES
    return WORKING_BYTES + 2 * file_sizes(checkpoint_uri).get(join_uri(checkpoint_uri, PARAMETERS), 0)


def _write_merged(config: TrainConfig, fetched: Path, checkpoint_uri: str, written: Path, dtype: torch.dtype) -> None:
    """The base's tensors with the trained ones of the folder `fetched` in their places, and adapters added to what they adapt."""
    base = local_copy(base_uri_of(config))
    plan, trained = Plan(), list_tensors(fetched)
    for name, source in list_tensors(base).items():
        plan.put(name, source.read, source.shape)
    for name, source in trained.items():
        stem, is_adapter, kind = name.partition(".lora_")
        if kind.startswith("B."):
            continue  # comes with its A
        shape = (trained[f"{stem}.lora_B.default.weight"].shape[0], source.shape[1]) if is_adapter else source.shape
        target = f"{stem}.weight" if is_adapter else name
        if plan.shapes.get(target) != shape:
            raise ModelError(f"{checkpoint_uri} holds {name} {source.shape}, which its base {config.model!r} has not; "
                             "put the model that the run started from back in its place")
        if is_adapter:
            assert config.lora is not None
            merge = partial(_merge, source, trained[f"{stem}.lora_B.default.weight"], config.lora.alpha / config.lora.r)
            plan.change(target, merge, shape)
        else:
            plan.put(name, source.read, shape)
    for name, shape in list(plan.shapes.items()):
        plan.change(name, partial(_cast, dtype), shape)
    architecture = PixelLMConfig.from_pretrained(base)
    architecture.dtype = dtype
    write_model(architecture, plan, written)
    PixelLMProcessor.from_pretrained(base).save_pretrained(written)


def _merge(lora_a: TensorSource, lora_b: TensorSource, scale: float, weight: Tensor) -> Tensor:
    return weight.float() + (lora_b.read().float() @ lora_a.read().float()) * scale


def _cast(dtype: torch.dtype, value: Tensor) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _delete_old_weights(uri: str, written: Path) -> None:
    """Delete weights of an earlier export to `uri`: a reader would take a `model.safetensors` instead of shards."""
    for file in list_files(uri):
        name = file.removeprefix(uri.rstrip("/") + "/")
        if re.fullmatch(r"model[^/]*\.safetensors(\.index\.json)?", name) and not (written / name).exists():
            delete(file)


def _read_metrics(checkpoint_uri: str) -> dict[str, float]:
    uri = join_uri(checkpoint_uri, VALIDATION)
    return json.loads(read_bytes(uri)) if exists(uri) else {}


def _data_versions(config: TrainConfig) -> list[dict[str, Any]]:
    """Each folder of shards with what it was made of; without, where it can be read no longer."""
    versions = []
    for entry in config.data:
        version: dict[str, Any] = entry.model_dump(mode="json")
        try:
            manifest = read_manifest(entry.uri)
            version |= {"num_rows": manifest.num_rows, "sources": [f"{source.name} ({source.version})" for source in manifest.sources]}
        except PixelLMError:
            version["sources"] = []
        versions.append(version)
    return versions


def _model_card(progress: RunProgress, config: TrainConfig, metrics: dict[str, float], adapters_only: bool) -> str:
    data = [f"- `{version['uri']}`" + (f": {version['num_rows']:,} rows of {', '.join(version['sources'])}" if version["sources"] else "")
            + (f", weight {version['weight']:g}" if version["weight"] else "") for version in _data_versions(config)]
    figures = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    shards = f" over `{config.validation.shards}`" if config.validation else ""
    values = {
        "use": USE_ADAPTERS if adapters_only else USE_MODEL, "run": config.run, "step": str(progress.step),
        "num_workers": str(progress.num_workers), "model": config.model,
        "revision": f", code revision `{progress.git_revision}`" if progress.git_revision else "",
        "metrics": "\n".join([f"By free generation{shards}:\n", "| figure | value |", "| --- | --- |", *figures]) if figures else
                   "None was asked during the run.",
        "data": "\n".join(data), "config": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)}
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], CARD.replace("{use}", values["use"]))
