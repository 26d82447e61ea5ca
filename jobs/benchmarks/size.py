"""Counts parameters of the presets, built without memory: by part, how many the paper's recipe trains, which layers adapters touch.

`python -m jobs.benchmark suite=size [presets=[7b,13b]] [output=docs/benchmarks]`
"""

from collections import Counter
from typing import Any

import torch
from pydantic import Field

from jobs.benchmarks.result import BenchmarkConfig, BenchmarkResult, Table
from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.presets import preset_config
from pixellm.train.config import LoraSettings, TrainConfig
from pixellm.train.parameters import select_parameters


class Config(BenchmarkConfig):
    """Which presets, and what is trained in them; the defaults are the paper's."""

    presets: tuple[str, ...] = ("tiny", "7b", "13b")
    lora: LoraSettings = LoraSettings()
    frozen: tuple[str, ...] = Field(("vision_tower",), description="parts that are not trained")


def run(config: Config) -> BenchmarkResult:
    """Counts without weights: everything is on torch's `meta` device."""
    training = TrainConfig.model_validate({"run": "size", "storage": "none", "data": ["none"], "steps": 1, "lora": config.lora,
                                           "frozen": config.frozen})
    headline: dict[str, Any] = {"params_by_part": {}, "trainable_params": {}, "lora_layers": {}}
    tables, lora_rows = [], []
    for preset in config.presets:
        with torch.device("meta"):
            model = PixelLMForConditionalGeneration(preset_config(preset))
            totals = _count(model, trained_only=False)
            select_parameters(model, training)
        trained = _count(model, trained_only=True)
        adapters = {name: parameter.numel() for name, parameter in model.language_model.named_parameters() if "lora_" in name}
        layers = [name.removesuffix(".lora_A.default.weight") for name in adapters if ".lora_A." in name]
        headline["params_by_part"][preset] = totals | {"all": sum(totals.values())}
        headline["trainable_params"][preset] = trained | {"all": sum(trained.values())}
        headline["lora_layers"][preset] = layers
        share = sum(trained.values()) / sum(totals.values())
        rows = [(part, count, trained[part]) for part, count in totals.items()]
        tables.append(Table(f"`{preset}`: parameters by part, {share:.2%} trained",
                            ("part", "parameters", "trained"), [*rows, ("all", sum(totals.values()), sum(trained.values()))]))
        for target in config.lora.targets:
            touched = [name for name in layers if name.endswith(f".{target}")]
            size = sum(count for name, count in adapters.items() if f".{target}.lora_" in name)
            lora_rows.append((preset, touched[0], touched[-1], len(touched), size))
    title = f"Layers that LoRA of rank {config.lora.r} touches"
    tables.append(Table(title, ("preset", "first", "last", "layers", "parameters"), lora_rows))
    return BenchmarkResult(headline, tables=tables, notes=(
        "Trained parameters of `language_model` are the adapters; they come on top of the counted parameters.",
        "The released run also trains both whole tables of the language model; here only the codebook's own rows are trained."))


def _count(model: torch.nn.Module, trained_only: bool) -> Counter[str]:
    """Parameters by part, the mask head by its own parts; a part that holds none of them counts 0."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        part = ".".join(pieces[:2]) if pieces[0] == "mask_head" else pieces[0]
        counts[part] += parameter.numel() if not trained_only or parameter.requires_grad else 0
    return counts
