"""Weights of others -> our model directory: a released PixelLM checkpoint (same outputs), or a LLaVA one (a start for training).

Names are translated by tables of rules; every tensor is used or in the list of the deliberately unused ones.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CONFIG_MAPPING, AutoConfig
from transformers import __version__ as transformers_version

from pixellm.errors import ModelError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration
from pixellm.model.side_files import read_json_object
from pixellm.model.tensor_plan import Plan, Rules, TensorSource, list_tensors
from pixellm.settings import StrictModel

IMAGE_SIZE, IMAGE_TOKENS_PER_SIDE = 448, 16
FEATURE_LAYERS = (-2, -11)
# The released weights were trained on photos normalised as for Segment Anything, not as their tower was.
OFFICIAL_IMAGE_STATISTICS = {"image_mean": [value / 255 for value in (123.675, 116.28, 103.53)],
                             "image_std": [value / 255 for value in (58.395, 57.12, 57.375)]}

LANGUAGE_MODEL: Rules = (
    (r"model\.embed_tokens\.weight", "language_model.model.embed_tokens.weight"),
    (r"model\.(layers\..*|norm\.weight)", r"language_model.model.\1"),
    (r"lm_head\.weight", "language_model.lm_head.weight"),
)

# Released PixelLM (transformers 4.31 names) -> ours. `{2n}` stands for twice the number n: our MLP counts its activations too.
OFFICIAL: Rules = (
    *LANGUAGE_MODEL,
    (r"model\.mm_projector\.(.*)", r"projector.\1"),
    (r"model\.out_mm_projector\.(.*)", r"mask_head.projector.\1"),
    (r"model\.image_feature_neck\.(.*)", r"mask_head.neck.\1"),
    (r"model\.text_hidden_fcs\.0\.(.*)", r"mask_head.state_projection.\1"),
    (r"model\.prompt_encoder\.no_mask_embed\.weight", "mask_head.decoder.no_mask_embed"),
    (r"model\.prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix", "mask_head.decoder.positions.0.frequencies"),
    (r"model\.mask_decoder\.pe(\d+)\.positional_encoding_gaussian_matrix", r"mask_head.decoder.positions.\1.frequencies"),
    (r"model\.mask_decoder\.transformer\.(.*)\.mlp\.(lin.*)", r"mask_head.decoder.transformers.\1.\2"),
    (r"model\.mask_decoder\.transformer\.(.*)", r"mask_head.decoder.transformers.\1"),
    (r"model\.mask_decoder\.(iou_token|mask_tokens)\.weight", r"mask_head.decoder.\1"),
    (r"model\.mask_decoder\.level_embed\.weight", "mask_head.decoder.level_embed"),
    (r"model\.mask_decoder\.output_upscaling\.(.*)", r"mask_head.decoder.mask_upsampling.\1"),
    (r"model\.mask_decoder\.upsample_2x\.(.*)", r"mask_head.decoder.feature_upsampling.1.\1"),
    (r"model\.mask_decoder\.output_hypernetworks_mlps\.0\.layers\.(\d+)\.(.*)", r"mask_head.decoder.hypernetwork.{2n:\1}.\2"),
)

# Tensors of the released checkpoint that never reach its output.
OFFICIAL_UNUSED = {
    r"model\.mask_decoder\.iou_prediction_head\..*": "predicts the quality of a mask; nothing reads it",
    r"model\.mask_decoder\.output_hypernetworks_mlps\.[1-3]\..*": "masks of the mask tokens 1 to 3; only that of token 0 is used",
    r"model\.prompt_encoder\.(point_embeddings|not_a_point_embed)\..*": "point prompts; only codebook prompts are used",
    r"model\.prompt_encoder\.mask_downscaling\..*": "mask prompts; only codebook prompts are used",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "computed from the configuration",
    r"model\.vision_tower\..*": "the vision tower is read from its own folder",
}

# The HF form of LLaVA, before and after transformers moved its parts below `model.`; `vision_model.` was dropped later.
LLAVA_HF: Rules = (
    (r"language_model\.model\.(embed_tokens\.weight|layers\..*|norm\.weight)", r"language_model.model.\1"),
    (r"model\.language_model\.(embed_tokens\.weight|layers\..*|norm\.weight)", r"language_model.model.\1"),
    (r"(?:language_model\.)?lm_head\.weight", "language_model.lm_head.weight"),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)", r"vision_tower.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.*)", r"projector.0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.*)", r"projector.2.\1"),
)

# LLaVA as its authors store it: one linear layer in the first versions, two later; the tower lies apart.
LLAVA_ORIGINAL: Rules = (*LANGUAGE_MODEL, (r"model\.mm_projector\.(.*)", r"projector.\1"))
LLAVA_UNUSED = {
    r"(language_model\.)?model\..*rotary_emb\.inv_freq": "computed from the configuration",
    r"model\.vision_tower\.vision_tower\..*": "the vision tower is read from its own folder",
    r".*position_ids": "computed from the configuration",
}

VISION_TOWER: Rules = ((r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)", r"vision_tower.\1"),)
VISION_TOWER_UNUSED = {
    r"(text_model|text_projection|visual_projection|logit_scale).*": "CLIP's text side and the projections to its common space",
    r".*position_ids": "computed from the configuration",
}


class LanguageModelSettings(StrictModel):
    """What a language model's tensors do not show; a folder without config.json needs it said."""

    num_attention_heads: int
    rms_norm_eps: float
    max_position_embeddings: int


def plan_official(official: Path, vision_tower: Path | None, codebook_token_ids: list[int], num_tokens_per_scale: int,
                  image_token_id: int | None = None, settings: LanguageModelSettings | None = None) -> tuple[PixelLMConfig, Plan]:
    """A released PixelLM checkpoint and its CLIP tower -> configuration and tensors of a model with the same outputs.

    What the weights were trained with is kept: fusion `mean`, gamma 1/L, and the position table resized as if its last row were CLS.
    `codebook_token_ids` (L*N ids, scale 0 first) and `num_tokens_per_scale` are not in the tensors. `image_token_id` defaults to the
    first id beyond the tables. `settings` are needed where `official` has no config.json.
    Raises ModelError that lists every missing, unknown or wrongly shaped tensor. Nothing is read but names and shapes: see `write_model`.
    """
    if vision_tower is None:
        raise ModelError("a released PixelLM checkpoint holds no vision tower; give vision_tower, the folder of its CLIP tower")
    tensors, tower = list_tensors(official), list_tensors(vision_tower)
    text_config = _read_text_config(official, tensors, "model.", settings)
    config = _build_config(text_config, _read_vision_config(vision_tower), codebook_token_ids, num_tokens_per_scale, image_token_id)
    config.fusion = "mean"
    plan = Plan()
    plan.add(tensors, OFFICIAL, OFFICIAL_UNUSED)
    plan.add(tower, VISION_TOWER, VISION_TOWER_UNUSED)
    for rows, table in (("input_rows", "model.embed_tokens.weight"), ("output_rows", "lm_head.weight")):
        if table in tensors:
            plan.put(f"codebook.{rows}", partial(_read_rows, tensors[table], codebook_token_ids),
                     (len(codebook_token_ids), config.text_config.hidden_size))
    plan.change("mask_head.decoder.no_mask_embed", lambda embed: embed.flatten(), (config.decoder_hidden_size,))
    plan.put("mask_head.decoder.gamma", lambda: torch.full((config.num_scales,), 1 / config.num_scales), (config.num_scales,))
    _resize_position_table(plan, config, resize_shifted_position_table)
    plan.check(_shapes(_build_empty(config)))
    return config, plan


def plan_llava(llava: Path, vision_tower: Path | None, codebook_token_ids: list[int], num_tokens_per_scale: int,
               image_token_id: int | None = None, settings: LanguageModelSettings | None = None,
               seed: int = 0) -> tuple[PixelLMConfig, Plan]:
    """A LLaVA checkpoint -> a model whose tower and language model are LLaVA's; the mask head starts at random values of `seed`.

    `llava` is in Hugging Face form, or in the authors' own, which needs `vision_tower` beside it. LLaVA's projector is kept where it
    has our shapes. The codebook's rows are the mean of the language model's. Other arguments and errors as `plan_official`.
    """
    tensors = list_tensors(llava)
    is_hf = any("language_model." in name for name in tensors)
    plan = Plan()
    if is_hf and vision_tower is not None:
        raise ModelError(f"{llava} is in Hugging Face form and holds its own vision tower; leave vision_tower out")
    if is_hf:
        stem = "model.language_model." if any(name.startswith("model.language_model.") for name in tensors) else "language_model.model."
        vision_config = _read_vision_config(llava)
        plan.add(tensors, LLAVA_HF, LLAVA_UNUSED)
    elif vision_tower is None:
        raise ModelError(f"{llava} holds no vision tower (LLaVA in its authors' form); give vision_tower, the folder of its CLIP tower")
    else:
        stem, vision_config = "model.", _read_vision_config(vision_tower)
        plan.add(tensors, LLAVA_ORIGINAL, LLAVA_UNUSED)
        plan.add(list_tensors(vision_tower), VISION_TOWER, VISION_TOWER_UNUSED)
    text_config = _read_text_config(llava, tensors, stem, settings)
    config = _build_config(text_config, vision_config, codebook_token_ids, num_tokens_per_scale, image_token_id)
    model = _build_empty(config)
    shapes = _shapes(model)
    kept_projector = {name: shape for name, shape in plan.shapes.items() if name.startswith("projector.")}
    if any(shapes.get(name) != shape for name, shape in kept_projector.items()):
        plan.drop(kept_projector, "LLaVA's projector has other shapes than ours; ours starts at random values")
        kept_projector = {}
    torch.manual_seed(seed)
    for part in ("mask_head",) if kept_projector else ("projector", "mask_head"):
        fresh = model.get_submodule(part).to_empty(device="cpu").apply(model._init_weights)
        for name, tensor in fresh.state_dict().items():
            plan.put(f"{part}.{name}", partial(Tensor.detach, tensor), tuple(tensor.shape))
    for rows, table in (("input_rows", "language_model.model.embed_tokens.weight"), ("output_rows", "language_model.lm_head.weight")):
        if table in plan.read:
            plan.put(f"codebook.{rows}", partial(_read_mean_rows, plan.read[table], len(codebook_token_ids)),
                     (len(codebook_token_ids), config.text_config.hidden_size))
    _resize_position_table(plan, config, resize_position_table)
    plan.check(shapes)
    return config, plan


def _build_config(text_config: dict[str, Any], vision_config: dict[str, Any], codebook_token_ids: list[int], num_tokens_per_scale: int,
                  image_token_id: int | None) -> PixelLMConfig:
    return PixelLMConfig(
        vision_config=vision_config, text_config=text_config, codebook_token_ids=codebook_token_ids,
        image_token_id=text_config["vocab_size"] if image_token_id is None else image_token_id, num_tokens_per_scale=num_tokens_per_scale,
        vision_feature_layers=FEATURE_LAYERS, image_tokens_per_side=IMAGE_TOKENS_PER_SIDE)


def _build_empty(config: PixelLMConfig) -> PixelLMForConditionalGeneration:
    """The model without memory."""
    with torch.device("meta"):
        return PixelLMForConditionalGeneration(config)


def _shapes(model: PixelLMForConditionalGeneration) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_rows(table: TensorSource, rows: list[int]) -> Tensor:
    return table.read()[rows]


def _read_mean_rows(read_table: Callable[[], Tensor], num_rows: int) -> Tensor:
    table = read_table()
    return table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype).repeat(num_rows, 1)


def resize_shifted_position_table(table: Tensor, side: int) -> Tensor:
    """(1 + n*n, D) -> (1 + side*side, D) as the released code does: rows `[:-1]` are taken as the grid, `[-1]` as CLS (it is the first)."""
    return torch.cat((_resize_grid(table[:-1], side), table[-1:]))


def resize_position_table(table: Tensor, side: int) -> Tensor:
    """(1 + n*n, D) -> (1 + side*side, D), bilinear; row 0 is CLS."""
    return torch.cat((table[:1], _resize_grid(table[1:], side)))


def _resize_grid(rows: Tensor, side: int) -> Tensor:
    old_side = round(len(rows) ** 0.5)
    grid = rows.float().T.unflatten(1, (old_side, old_side)).unsqueeze(0)
    return F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)[0].flatten(1).T.to(rows.dtype)


def _resize_position_table(plan: Plan, config: PixelLMConfig, resize: Callable[[Tensor, int], Tensor]) -> None:
    side = config.patches_per_side
    plan.change("vision_tower.embeddings.position_embedding.weight", lambda table: resize(table, side).contiguous(),
                (1 + side * side, config.vision_config.hidden_size))


def _read_text_config(folder: Path, tensors: Mapping[str, TensorSource], stem: str,
                      settings: LanguageModelSettings | None) -> dict[str, Any]:
    """The language model's configuration: from config.json where there is one, else from the tensors' shapes and `settings`.

    `stem` is what stands before the names of its tensors. The vocabulary is as long as the table, whatever config.json says.
    """
    names = [stem + name for name in ("embed_tokens.weight", "layers.0.mlp.gate_proj.weight", "layers.0.self_attn.k_proj.weight")]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}: it holds no language model that is known here")
    (vocab_size, hidden_size), (intermediate_size, _), (key_size, _) = (tensors[name].shape for name in names)
    file = folder / "config.json"
    if file.is_file():
        values = read_json_object(file)
        return _known_values(file, values.get("text_config", values | {"model_type": "llama"})) | {"vocab_size": vocab_size}
    if settings is None:
        raise ModelError(f"{folder} has no config.json, and its tensors do not show num_attention_heads, rms_norm_eps and "
                         "max_position_embeddings; give them as language_model={num_attention_heads: 32, rms_norm_eps: 1e-6, "
                         "max_position_embeddings: 2048} (LLaVA-Lightning-7B-v1-1) or {…: 40, …: 1e-5, …: 4096} "
                         "(llava-llama-2-13b-chat), or copy a config.json there")
    heads = settings.num_attention_heads
    layers = {int(match[1]) for name in tensors if (match := re.match(re.escape(stem) + r"layers\.(\d+)\.", name))}
    return {"model_type": "llama", "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
            "num_hidden_layers": len(layers), "num_key_value_heads": key_size * heads // hidden_size,
            **settings.model_dump()}


def _read_vision_config(folder: Path) -> dict[str, Any]:
    """The tower's configuration at `IMAGE_SIZE`; a whole CLIP or LLaVA model's folder is fine too."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no config.json; give the folder of the CLIP vision tower as Hugging Face stores it")
    values = read_json_object(file)
    found = _known_values(file, values.get("vision_config", values), "clip_vision_model")
    return found | {"image_size": IMAGE_SIZE}


def read_image_statistics(folder: Path) -> dict[str, list[float]]:
    """`image_mean` and `image_std` of the vision tower in `folder`; nothing where it does not say them."""
    file = folder / "preprocessor_config.json"
    values = read_json_object(file) if file.is_file() else {}
    found = {name: values[name] for name in ("image_mean", "image_std") if values.get(name) is not None}
    for name, numbers in found.items():
        if not (isinstance(numbers, list) and len(numbers) == 3 and all(type(number) in (int, float) for number in numbers)):
            raise ModelError(f"{file}: {name} is {numbers!r}, expected three numbers; fetch it again")
    return found


def _known_values(file: Path, values: Any, model_type: str | None = None) -> dict[str, Any]:
    """The keys that the configuration of this type takes; the rest of a config.json is about files, versions and other models.

    Raises ModelError for a `model_type` that is not known and for values that make no configuration.
    """
    if not isinstance(values, dict):
        raise ModelError(f"{file}: a model's configuration is a {type(values).__name__}, expected keys and values; fetch it again")
    model_type = model_type or values.get("model_type", "llama")
    if model_type not in CONFIG_MAPPING:
        raise ModelError(f"{file}: model_type {model_type!r} is not one that transformers {transformers_version} knows")
    about = {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path"}
    known = (AutoConfig.for_model(model_type).to_dict().keys() | {"rope_theta", "rope_scaling"}) - about
    found = {key: value for key, value in values.items() if key in known}
    try:
        AutoConfig.for_model(model_type, **found)
    except Exception as error:  # each configuration checks its values in its own way
        raise ModelError(f"{file} does not make a configuration of {model_type}: {' '.join(str(error).split())}; fetch it again") from None
    return {"model_type": model_type, **found}
