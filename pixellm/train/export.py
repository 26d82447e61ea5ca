"""A checkpoint and the model it started from, to one Hugging Face directory that needs neither."""

import json
import tempfile
from pathlib import Path

import torch
import yaml

from pixellm.errors import ModelError, StorageError
from pixellm.storage import upload_folder
from pixellm.train.checkpoint import TrainingCheckpoint, find_latest_checkpoint, read_checkpoint, read_manifest
from pixellm.train.loop import load_base
from pixellm.train.parameters import add_adapters, merge_adapters
from pixellm.train.trainer import base_uri_of

CARD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [pixellm, reasoning-segmentation]
---
# {run}, step {step}

A PixelLM: a photo and a question go in, a sentence and one mask per thing it names come out.
Trained for {step} optimiser steps by {num_workers} workers, starting from `{model}`{revision}.

```python
from pixellm.inference.segmenter import Segmenter

segmenter = Segmenter.from_pretrained("path or URI of this folder")
print(segmenter.segment([photo], ["Which of these can roll?"])[0].text)
```

## Configuration of the run
```yaml
{config}```
"""


def resolve_checkpoint(uri: str) -> str:
    """The checkpoint at `uri`, or the latest finished one of the run whose folder it is. Raises StorageError when there is none."""
    try:
        read_manifest(uri)
        return uri
    except StorageError:
        latest = find_latest_checkpoint(uri)
        if latest is None:
            raise StorageError(f"{uri} holds no finished checkpoint; give the folder of a run, or of one of its checkpoints") from None
        return latest


def export_checkpoint(checkpoint_uri: str, output_uri: str, dtype: torch.dtype = torch.float32) -> TrainingCheckpoint:
    """Write model, processor and model card to `output_uri`; adapters are merged. Raises ModelError when base and checkpoint do not fit."""
    with tempfile.TemporaryDirectory(prefix="pixellm-export-") as folder:
        checkpoint = read_checkpoint(checkpoint_uri, Path(folder) / "checkpoint")
        config = checkpoint.config
        model, processor = load_base(base_uri_of(config))
        if config.lora is not None:
            add_adapters(model.language_model, config.lora)
        parameters = dict(model.named_parameters())
        for name, value in checkpoint.state.parameters.items():
            if name not in parameters or parameters[name].shape != value.shape:
                raise ModelError(f"{checkpoint_uri} holds {name} {tuple(value.shape)}, which its base {config.model!r} has not; "
                                 f"put the model that the run started from back in its place")
            parameters[name].data.copy_(value)
        if config.lora is not None:
            merge_adapters(model.language_model)
        written = Path(folder) / "model"
        model.to(dtype).save_pretrained(written)
        processor.save_pretrained(written)
        (written / "README.md").write_text(_model_card(checkpoint))
        (written / "training.json").write_text(json.dumps({"run": config.run, **vars(checkpoint.progress)}, indent=1))
        upload_folder(written, output_uri)
    return checkpoint


def _model_card(checkpoint: TrainingCheckpoint) -> str:
    progress, config = checkpoint.progress, checkpoint.config
    values = {"run": config.run, "step": str(progress.step), "num_workers": str(progress.num_workers), "model": config.model,
              "revision": f", code revision `{progress.git_revision}`" if progress.git_revision else "",
              "config": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)}
    card = CARD
    for name, value in values.items():
        card = card.replace(f"{{{name}}}", value)
    return card
