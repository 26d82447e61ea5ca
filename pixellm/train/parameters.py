"""What is trained: parts of the model by parameter name, adapters on the language model, and the table that says so at the start."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from pixellm.errors import ModelError
from pixellm.train.config import PARTS, LoraSettings, Part, TrainConfig

_LAYER = re.compile(r"\blayers?\.(\d+)\.")
_AFTER_LAYERS = re.compile(r"(post_layernorm|pooler|\bhead\b|^vision_tower\.(vision_model\.)?(layernorm|norm)\.)")


@dataclass(frozen=True)
class ParameterGroup:
    """The trained parameters of one part, by name, and their peak learning rate."""

    part: Part
    learning_rate: float
    parameters: dict[str, nn.Parameter]


def part_of(name: str) -> Part:
    """The part that a parameter belongs to, by the first piece of its name. Raises ModelError for a parameter of no part."""
    prefix = name.partition(".")[0]
    if prefix not in PARTS:
        raise ModelError(f"parameter {name!r} belongs to none of the parts {', '.join(PARTS)}")
    return prefix  # type: ignore[return-value]


def select_parameters(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Adds the adapters that `config` asks for, sets `requires_grad` everywhere, and groups what is trained by part.

    Not trained: parts that are frozen or at learning rate 0, the language model's own weights beside adapters (but for its token tables
    where `lora.token_tables` says so), and tower layers whose output nothing reads (deeper than the deepest feature layer). Every
    parameter in the groups receives a gradient.
    """
    if config.lora is not None:
        add_adapters(model.language_model, config.lora)
    beside_adapters = set(_token_tables(model)) if config.lora is not None and config.lora.token_tables else set()
    unread = set(unread_tower_parameters(model))
    groups: dict[Part, dict[str, nn.Parameter]] = {part: {} for part in config.trained_parts}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        adapted = config.lora is not None and part == "language_model"
        is_trained = part in groups and name not in unread and (not adapted or "lora_" in name or name in beside_adapters)
        parameter.requires_grad_(is_trained)
        if is_trained:
            groups[part][name] = parameter
    return [ParameterGroup(part, getattr(config.learning_rates, part), found) for part, found in groups.items() if found]


def _token_tables(model: nn.Module) -> list[str]:
    """Names of the language model's input and output table, one name where they are tied."""
    tables = [model.language_model.get_input_embeddings().weight, model.language_model.get_output_embeddings().weight]
    return [name for name, parameter in model.named_parameters() if any(parameter is table for table in tables)]


def unread_tower_parameters(model: nn.Module) -> Iterator[str]:
    """Names of tower parameters behind the deepest feature layer: no output of the model depends on them."""
    tower = getattr(model, "vision_tower", None)
    if tower is None:
        return
    num_layers = model.config.vision_config.num_hidden_layers
    num_read = max(layer if layer >= 0 else num_layers + 1 + layer for layer in model.config.vision_feature_layers)
    for name, _ in model.named_parameters():
        if not name.startswith("vision_tower."):
            continue
        layer = _LAYER.search(name)
        if (layer and int(layer.group(1)) >= num_read) or (not layer and _AFTER_LAYERS.search(name)):
            yield name


def parameter_table(model: nn.Module, groups: list[ParameterGroup]) -> str:
    """One line per part: parameters, how many are trained, peak learning rate. Build it before ZeRO-3 takes the parameters apart."""
    totals = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        totals[part_of(name)] += parameter.numel()
    trained = {group.part: sum(parameter.numel() for parameter in group.parameters.values()) for group in groups}
    rates = {group.part: f"{group.learning_rate:g}" for group in groups}
    lines = [f"{'part':<16}{'parameters':>14}{'trained':>14}{'learning rate':>16}"]
    lines += [f"{part:<16}{totals[part]:>14,}{trained.get(part, 0):>14,}{rates.get(part, '-'):>16}" for part in PARTS]
    lines.append(f"{'all':<16}{sum(totals.values()):>14,}{sum(trained.values()):>14,}")
    return "\n".join(lines)


def add_adapters(language_model: nn.Module, lora: LoraSettings) -> None:
    """Puts LoRA adapters on the named projections, in place. Raises ModelError that names the nearest where one does not exist."""
    from peft import LoraConfig, inject_adapter_in_model

    names = sorted({name.rpartition(".")[2] for name, module in language_model.named_modules() if isinstance(module, nn.Linear)})
    for target in lora.targets:
        if target not in names:
            nearest = difflib.get_close_matches(target, names, n=1, cutoff=0.0)[0]
            raise ModelError(f"lora.targets names {target!r}, which the language model has not; did you mean {nearest!r}? "
                             f"Its projections are {', '.join(names)}")
    settings = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.targets), bias="none")
    inject_adapter_in_model(settings, language_model)


def merge_adapters(language_model: nn.Module) -> None:
    """Adds the adapters' product to the weights that they adapt and takes them out, in place."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in language_model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, child = name.rpartition(".")
        setattr(language_model.get_submodule(parent), child, module.get_base_layer())
