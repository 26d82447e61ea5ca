"""A released PixelLM checkpoint -> our model directory, tensor by tensor.

Names are translated by tables of rules; every tensor is used or in the list of the deliberately unused ones. Tensors are read and
written one at a time, so memory holds one shard of the output, never the model.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig

from pixellm.errors import ModelError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration

OUTPUT_SHARD_BYTES = 1 << 30
INDEX_NAME = "model.safetensors.index.json"

Rules = tuple[tuple[str, str], ...]

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

VISION_TOWER: Rules = ((r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)", r"vision_tower.\1"),)
VISION_TOWER_UNUSED = {
    r"(text_model|text_projection|visual_projection|logit_scale).*": "CLIP's text side and the projections to its common space",
    r".*position_ids": "computed from the configuration",
}


@dataclass(frozen=True)
class TensorSource:
    """Where a tensor lies: file, name, shape. `read` loads it alone."""

    file: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """The tensor, as stored."""
        if self.file.suffix == ".safetensors":
            with safe_open(self.file, framework="pt") as opened:
                return opened.get_tensor(self.name)
        return _load_bin(self.file)[self.name].clone()


def list_tensors(folder: Path) -> dict[str, TensorSource]:
    """Every tensor of a checkpoint folder: `*.safetensors`, else `*.bin` (read with `weights_only`, mapped, not loaded).

    Raises ModelError when the folder holds neither, or the same name twice.
    """
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ModelError(f"{folder} holds neither *.safetensors nor pytorch_model*.bin")
    found: dict[str, TensorSource] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        else:
            shapes = {name: tuple(tensor.shape) for name, tensor in _load_bin(file).items()}
        twice = found.keys() & shapes.keys()
        if twice:
            raise ModelError(f"{file} holds {sorted(twice)[:3]} again; the folder mixes two checkpoints")
        found.update({name: TensorSource(file, name, shape) for name, shape in shapes.items()})
    return found


def _load_bin(file: Path) -> dict[str, Tensor]:
    """A `.bin` file's tensors, mapped from disk; nothing but tensors is unpickled."""
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


@dataclass
class Plan:
    """Which stored tensor becomes which of ours, and how. `unused` are stored names that are left out on purpose."""

    read: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def add(self, tensors: Mapping[str, TensorSource], rules: Rules, unused: Mapping[str, str]) -> None:
        """Translate the names of `tensors`; those that no rule knows go to `unknown`."""
        for name, source in tensors.items():
            if target := translate(name, rules):
                self.put(target, source.read, source.shape)
            elif any(re.fullmatch(pattern, name) for pattern in unused):
                self.unused.append(name)
            else:
                self.unknown.append(name)

    def put(self, target: str, read: Callable[[], Tensor], shape: tuple[int, ...]) -> None:
        """Our tensor `target` is what `read` returns, of `shape`."""
        self.read[target], self.shapes[target] = read, shape

    def change(self, target: str, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        """Apply `function` to what `target` was going to be. Nothing happens when nothing was."""
        if target in self.read:
            stored = self.read[target]
            self.put(target, lambda: function(stored()), shape)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ModelError that lists every unknown, missing and wrongly shaped tensor."""
        missing = sorted(expected.keys() - self.read.keys())
        extra = sorted(self.unknown) + sorted(self.read.keys() - expected.keys())
        wrong = [f"{name} is {list(self.shapes[name])}, expected {list(expected[name])}"
                 for name in sorted(expected.keys() & self.shapes.keys()) if self.shapes[name] != expected[name]]
        problems = [f"{len(found)} {kind}: {', '.join(found)}" for kind, found in
                    (("missing", missing), ("not known", extra), ("of a wrong shape", wrong)) if found]
        if problems:
            raise ModelError("the checkpoint does not fit the model: " + "; ".join(problems))


def translate(name: str, rules: Rules) -> str | None:
    """Our name of a stored tensor, None when no rule knows it."""
    for pattern, target in rules:
        if match := re.fullmatch(pattern, name):
            return re.sub(r"\{2n:(\d+)\}", lambda number: str(2 * int(number[1])), match.expand(target))
    return None


def convert_official(official: Path, vision_tower: Path, output: Path, codebook_token_ids: list[int], num_tokens_per_scale: int,
                     image_token_id: int | None = None, num_attention_heads: int | None = None) -> tuple[PixelLMConfig, Plan]:
    """A released PixelLM checkpoint and its CLIP tower -> model directory (configuration and weights) with the same outputs.

    What the weights were trained with is kept: fusion `mean`, gamma 1/L, and the position table resized as if its last row were CLS.
    `codebook_token_ids` (L*N ids, scale 0 first) and `num_tokens_per_scale` are not in the tensors. `image_token_id` defaults to the
    first id beyond the tables. `num_attention_heads` is needed where `official` has no config.json and the heads are not 128 wide.
    Raises ModelError that lists every missing, unknown or wrongly shaped tensor, before anything is written.
    """
    tensors, tower = list_tensors(official), list_tensors(vision_tower)
    text_config = _read_text_config(official, tensors, num_attention_heads)
    config = PixelLMConfig(
        vision_config=_read_vision_config(vision_tower, image_size=448), text_config=text_config, codebook_token_ids=codebook_token_ids,
        image_token_id=text_config["vocab_size"] if image_token_id is None else image_token_id, num_tokens_per_scale=num_tokens_per_scale,
        vision_feature_layers=[-2, -11], image_tokens_per_side=16, fusion="mean")
    plan = Plan()
    plan.add(tensors, OFFICIAL, OFFICIAL_UNUSED)
    plan.add(tower, VISION_TOWER, VISION_TOWER_UNUSED)
    width = config.text_config.hidden_size
    for rows, table in (("input_rows", "model.embed_tokens.weight"), ("output_rows", "lm_head.weight")):
        if table in tensors:
            plan.put(f"codebook.{rows}", partial(_read_rows, tensors[table], codebook_token_ids), (len(codebook_token_ids), width))
    plan.change("mask_head.decoder.no_mask_embed", lambda embed: embed.flatten(), (config.decoder_hidden_size,))
    plan.put("mask_head.decoder.gamma", lambda: torch.full((config.num_scales,), 1 / config.num_scales), (config.num_scales,))
    _resize_position_table(plan, config, resize_shifted_position_table)
    plan.check(expected_shapes(config))
    write_model(config, plan, output)
    return config, plan


def _read_rows(table: TensorSource, rows: list[int]) -> Tensor:
    return table.read()[rows]


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


def expected_shapes(config: PixelLMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every stored tensor of a model of ours, from a model without memory."""
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def write_model(config: PixelLMConfig, plan: Plan, output: Path) -> None:
    """Write config.json and safetensors shards of about `OUTPUT_SHARD_BYTES`, one shard in memory at a time, the index last."""
    output.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    num_shards = num_bytes = total_bytes = 0
    for position, name in enumerate(sorted(plan.read)):
        shard[name] = plan.read[name]().contiguous()
        num_bytes += shard[name].nbytes
        if num_bytes >= OUTPUT_SHARD_BYTES or position == len(plan.read) - 1:
            num_shards += 1
            file = f"model-{num_shards:05d}.safetensors"
            save_file(shard, output / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, file))
            total_bytes += num_bytes
            shard, num_bytes = {}, 0
    config.architectures = [PixelLMForConditionalGeneration.__name__]
    config.save_pretrained(output)
    (output / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": index}, indent=1))


def _read_text_config(folder: Path, tensors: Mapping[str, TensorSource], num_attention_heads: int | None) -> dict:
    """The language model's configuration: from config.json where there is one, else from the tensors' shapes."""
    file = folder / "config.json"
    if file.is_file():
        values = json.loads(file.read_text())
        known = LlamaConfig().to_dict().keys() - {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype"}
        return {"model_type": "llama", **{key: value for key, value in values.items() if key in known}}
    needed = ("model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.self_attn.k_proj.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ModelError(f"{folder} has no config.json and lacks {missing}, from which it could be told; copy a config.json there")
    (vocab_size, hidden_size), (intermediate_size, _), (key_size, _) = (tensors[name].shape for name in needed)
    heads = num_attention_heads or hidden_size // 128
    layers = {int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    return {"model_type": "llama", "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
            "num_hidden_layers": len(layers), "num_attention_heads": heads, "num_key_value_heads": key_size * heads // hidden_size,
            "max_position_embeddings": 4096}


def _read_vision_config(folder: Path, image_size: int) -> dict:
    """The tower's configuration at `image_size`; a whole CLIP model's folder is fine too."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no config.json; give the folder of the CLIP vision tower as Hugging Face stores it")
    values = json.loads(file.read_text())
    values = values.get("vision_config", values)
    known = CLIPVisionConfig().to_dict().keys() - {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype"}
    return {"model_type": "clip_vision_model", **{key: value for key, value in values.items() if key in known}, "image_size": image_size}
