"""A checkpoint to one Hugging Face directory that needs neither run nor base, or to its adapters alone; with a card about it."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from pixellm.data.manifest import read_manifest
from pixellm.errors import ConfigError, PixelLMError
from pixellm.storage import exists, join_uri, open_filesystem, read_bytes, upload_folder
from pixellm.train.adapters import write_adapters
from pixellm.train.checkpoint import TrainedWeights
from pixellm.train.restore import restore_model
from pixellm.train.retention import VALIDATION

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


def export_checkpoint(checkpoint_uri: str, output_uris: Sequence[str], dtype: torch.dtype = torch.float32,
                      adapters_only: bool = False) -> TrainedWeights:
    """Write model, processor and card to each of `output_uris`, adapters merged; or what was trained, alone.

    Raises ModelError when base and checkpoint do not fit.
    """
    with tempfile.TemporaryDirectory(prefix="pixellm-export-") as folder:
        written = Path(folder) / "model"
        restored = restore_model(checkpoint_uri)
        weights = restored.weights
        if adapters_only:
            written.mkdir()
            write_adapters(written, weights, dtype)
        else:
            restored.model.to(dtype).save_pretrained(written)
            restored.processor.save_pretrained(written)
        metrics = _read_metrics(checkpoint_uri)
        (written / "README.md").write_text(_model_card(weights, metrics, adapters_only))
        about = {"run": weights.config.run, **vars(weights.progress), "validation": metrics, "data": _data_versions(weights)}
        (written / "training.json").write_text(json.dumps(about, indent=1))
        for uri in output_uris:
            upload_folder(written, uri)
    return weights


def _read_metrics(checkpoint_uri: str) -> dict[str, float]:
    uri = join_uri(checkpoint_uri, VALIDATION)
    return json.loads(read_bytes(uri)) if exists(uri) else {}


def _data_versions(weights: TrainedWeights) -> list[dict[str, Any]]:
    """Each folder of shards with what it was made of; without, where it can be read no longer."""
    versions = []
    for entry in weights.config.data:
        version: dict[str, Any] = entry.model_dump(mode="json")
        try:
            manifest = read_manifest(entry.uri)
            version |= {"num_rows": manifest.num_rows, "sources": [f"{source.name} ({source.version})" for source in manifest.sources]}
        except PixelLMError:
            version["sources"] = []
        versions.append(version)
    return versions


def _model_card(weights: TrainedWeights, metrics: dict[str, float], adapters_only: bool) -> str:
    progress, config = weights.progress, weights.config
    data = [f"- `{version['uri']}`" + (f": {version['num_rows']:,} rows of {', '.join(version['sources'])}" if version["sources"] else "")
            + (f", weight {version['weight']:g}" if version["weight"] else "") for version in _data_versions(weights)]
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
