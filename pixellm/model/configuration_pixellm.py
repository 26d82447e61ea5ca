"""The architecture of PixelLM as a Hugging Face configuration. It lives with the weights; nothing about a run is in it."""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from pixellm.errors import ModelError


@strict
class PixelLMConfig(PreTrainedConfig):
    """Vision tower + language model + codebook of L x N tokens + pixel decoder (arXiv 2312.02228).

    Args:
        vision_config, text_config: sub-configurations of any type transformers knows (dict with `model_type`, or object).
            The tower must return patch tokens; the language model must be decoder-only.
        image_token_id: id of the placeholder that stands `num_image_tokens` times in a prompt.
        codebook_token_ids: the L*N ids of the codebook, scale 0 first. Their rows are parameters of their own
            (`codebook`), so they may lie inside or beyond the language model's tables.
        num_tokens_per_scale: N.
        vision_feature_layers: indices into the tower's hidden states, deepest first; their number is L.
        scale_upsampling: side of each scale's grid as a multiple of the patch grid, 1 or 2 each; default 1, 2, 2 …
        image_tokens_per_side: the deepest features are pooled to this side before they enter the language model.
        mask_padding: hide the padded patches from the tower and the language model.
        mask_channels: width of the dot product between a mask token and the upscaled features.
        fusion: how the N states of a scale become one prompt: `linear` (phi of the paper), or `mean` (the released weights).
    """

    model_type = "pixellm"
    sub_configs: ClassVar = {"vision_config": AutoConfig, "text_config": AutoConfig}

    vision_config: Any = None
    text_config: Any = None
    image_token_id: int = 32000
    codebook_token_ids: list[int] | tuple[int, ...] = (32001, 32002, 32003, 32004, 32005, 32006)
    num_tokens_per_scale: int = 3
    vision_feature_layers: list[int] | tuple[int, ...] = (-2, -11)
    scale_upsampling: list[int] | tuple[int, ...] = ()
    image_tokens_per_side: int = 16
    mask_padding: bool = True
    fusion: Literal["linear", "mean"] = "linear"
    decoder_hidden_size: int = 256
    decoder_num_heads: int = 8
    decoder_mlp_size: int = 2048
    decoder_depth: int = 2
    mask_channels: int = 32
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        self.vision_config = _sub_config(self.vision_config, "clip_vision_model")
        self.text_config = _sub_config(self.text_config, "llama")
        if not self.scale_upsampling:
            self.scale_upsampling = [1] + [2] * (self.num_scales - 1)
        super().__post_init__(**kwargs)
        num_ids = self.num_scales * self.num_tokens_per_scale
        if len(set(self.codebook_token_ids)) != num_ids:
            raise ModelError(f"codebook_token_ids needs {self.num_scales} scales x {self.num_tokens_per_scale} tokens = {num_ids} "
                             f"different ids, found {list(self.codebook_token_ids)}")
        if len(self.scale_upsampling) != self.num_scales or any(factor not in (1, 2) for factor in self.scale_upsampling):
            raise ModelError(f"scale_upsampling needs {self.num_scales} values of 1 or 2, found {list(self.scale_upsampling)}")
        num_states = getattr(self.vision_config, "num_hidden_layers", None)
        if num_states and any(not -num_states - 1 <= layer <= num_states for layer in self.vision_feature_layers):
            raise ModelError(f"vision_feature_layers are {list(self.vision_feature_layers)}, the vision tower has {num_states} layers, "
                             f"so {num_states + 1} hidden states")
        if self.decoder_hidden_size % (2 * self.decoder_num_heads):
            raise ModelError(f"decoder_hidden_size {self.decoder_hidden_size} must be a multiple of twice decoder_num_heads "
                             f"{self.decoder_num_heads}")

    @property
    def num_scales(self) -> int:
        """L."""
        return len(self.vision_feature_layers)

    @property
    def patches_per_side(self) -> int:
        """Side of the tower's grid of patches."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one photo takes in the language model."""
        return self.image_tokens_per_side**2

    @property
    def mask_size(self) -> int:
        """M: side of the combined mask logits."""
        return 2 * max(self.scale_upsampling) * self.patches_per_side


def _sub_config(value: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    values = dict(value or {})
    return AutoConfig.for_model(values.pop("model_type", default_type), **values)
