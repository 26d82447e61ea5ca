"""Only what a run trained, as a small folder that fits onto the model it started from.

LoRA weights are in peft's own layout (`adapter_config.json`, `adapter_model.safetensors`), which `PeftModel.from_pretrained` reads too;
what was trained in full lies in `trained.safetensors`; `adapter.json` names the base.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pixellm.errors import ModelError, StorageError
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.side_files import read_json_object
from pixellm.settings import build_config
from pixellm.storage import local_copy
from pixellm.train.base import base_uri_of, load_base
from pixellm.train.checkpoint import TrainedWeights
from pixellm.train.config import LoraSettings
from pixellm.train.parameters import add_adapters, merge_adapters
from pixellm.train.restore import put_values

ABOUT, TRAINED, LORA = "adapter.json", "trained.safetensors", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def write_adapters(folder: Path, weights: TrainedWeights, dtype: torch.dtype) -> None:
    """Write what the run of `weights` trained."""
    from peft import LoraConfig

    config, lora = weights.config, weights.config.lora
    values = {name: value.to(dtype) for name, value in weights.parameters.items()}
    adapters = {name: value for name, value in values.items() if "lora_" in name}
    save_file({name: value for name, value in values.items() if name not in adapters}, folder / TRAINED)
    if lora is not None:
        names = "|".join(re.escape(target) for target in lora.targets)
        LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=rf"language_model\..*\.({names})",
                   bias="none", base_model_name_or_path=config.model, inference_mode=True).save_pretrained(str(folder))
        save_file({PEFT_PREFIX + name.replace(".default.", "."): value for name, value in adapters.items()}, folder / LORA)
    about = {"base": base_uri_of(config), "lora": lora.model_dump(mode="json") if lora else None, "run": config.run,
             "step": weights.progress.step}
    (folder / ABOUT).write_text(json.dumps(about, indent=1))


def load_adapters(uri: str, base: str | None = None,
                  dtype: torch.dtype = torch.float32) -> tuple[PixelLMForConditionalGeneration, PixelLMProcessor]:
    """The base with what `write_adapters` wrote at `uri`, merged, in eval mode. `base`: where the base lies now, if not where it was.

    Raises StorageError for another folder, and ModelError when the base does not fit.
    """
    folder = local_copy(uri)
    if not (folder / ABOUT).is_file():
        raise StorageError(f"{uri} has no {ABOUT}: it is no folder of adapters; jobs.export writes one with adapters_only=true")
    about = read_json_object(folder / ABOUT)
    if not (isinstance(about.get("base"), str) and isinstance(about.get("lora"), dict | None)):
        raise ModelError(f"{folder / ABOUT} does not say base and lora as jobs.export writes them; fetch it again")
    model, processor = load_base(base or about["base"], dtype)
    values = _load_tensors(folder / TRAINED)
    if about["lora"] is not None:
        add_adapters(model.language_model, build_config(LoraSettings, about["lora"], where=str(folder / ABOUT)))
        stored = _load_tensors(folder / LORA)
        values |= {re.sub(r"(lora_\w+)\.weight$", r"\1.default.weight", name.removeprefix(PEFT_PREFIX)): stored[name] for name in stored}
    put_values(model, values, f"{uri} holds", base or about["base"])
    if about["lora"] is not None:
        merge_adapters(model.language_model)
    return model.eval(), processor


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not whole ({error}); fetch it again") from None
