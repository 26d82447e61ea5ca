"""PixelLM: a photo and a conversation in, token logits and one mask per codebook group out.

Letters: B photos, Q conversations, T tokens, D language-model width, I image tokens of a photo, L scales, N codebook tokens per scale,
K targets (codebook groups) over all conversations, C decoder width, P patches of a photo, S side of the padded photo, M side of a mask.
"""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from pixellm.errors import ModelError
from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.pixel_decoder import FourierPosition, LayerNorm2d, PixelDecoder


@dataclass(frozen=True)
class PhotoFeatures:
    """What the vision tower says of B photos: `image_embeds` (B, I, D) for the language model, `scale_features` L x (B, P, D_v)."""

    image_embeds: Tensor
    scale_features: tuple[Tensor, ...]


@dataclass
class PixelLMOutput(ModelOutput):
    """`logits` (Q, T, V); `hidden_states` (Q, T, D), final and normed; `mask_logits` (K, M, M), combined over the scales;
    `scale_mask_logits` L x (K, 2g, 2g); `target_conversation` (K,) int64, the conversation of each target, in order."""

    logits: Tensor | None = None
    hidden_states: Tensor | None = None
    mask_logits: Tensor | None = None
    scale_mask_logits: tuple[Tensor, ...] | None = None
    target_conversation: Tensor | None = None


class Codebook(nn.Module):
    """Input and output rows of the codebook tokens, (L*N, D) each, apart from the language model's own tables."""

    def __init__(self, num_tokens: int, hidden_size: int):
        super().__init__()
        self.input_rows = nn.Parameter(torch.empty(num_tokens, hidden_size))
        self.output_rows = nn.Parameter(torch.empty(num_tokens, hidden_size))



def _projector(vision_size: int, text_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(vision_size, 2 * text_size), nn.GELU(), nn.Linear(2 * text_size, text_size))


class MaskHead(nn.Module):
    """Everything on the decoder's side: photo features and codebook states (section 3.2 of the paper) to mask logits."""

    def __init__(self, config: PixelLMConfig):
        super().__init__()
        text_size, width = config.text_config.hidden_size, config.decoder_hidden_size
        self.num_scales, self.num_tokens_per_scale, self.mask_size = config.num_scales, config.num_tokens_per_scale, config.mask_size
        self.projector = _projector(config.vision_config.hidden_size, text_size)
        self.neck = nn.Sequential(
            nn.Conv2d(text_size, width, 1, bias=False), LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width))
        self.state_projection = nn.Sequential(nn.Linear(text_size, text_size), nn.ReLU(), nn.Linear(text_size, width))
        self.fusion = nn.Linear(config.num_tokens_per_scale * width, width) if config.fusion == "linear" else None
        self.decoder = PixelDecoder(width, config.decoder_num_heads, config.decoder_mlp_size, config.decoder_depth,
                                    config.mask_channels, list(config.scale_upsampling))

    def fuse(self, states: Tensor, only_token: int | None = None) -> Tensor:
        """Codebook states (K, L*N, D) -> one prompt per scale (K, L, C): h^l = phi(h^l_1 … h^l_N).

        With `only_token` n the others of each scale are 0, to see what h^l_n does alone.
        """
        projected = self.state_projection(states).unflatten(1, (self.num_scales, self.num_tokens_per_scale))
        if only_token is not None:
            projected = torch.zeros_like(projected).index_copy(2, torch.tensor([only_token], device=projected.device),
                                                               projected[:, :, only_token:only_token + 1])
        if self.fusion is not None:
            return self.fusion(projected.flatten(2))
        weight = 1.0 if self.num_tokens_per_scale == 1 else 1.0 / (self.num_tokens_per_scale * self.num_scales)
        return projected.sum(2) * weight

    def decoder_features(self, scale_features: tuple[Tensor, ...]) -> list[Tensor]:
        """L tensors (B, P, D_v) -> L tensors (B, C, g, g)."""
        side = round(scale_features[0].shape[1] ** 0.5)
        return [self.neck(self.projector(x).transpose(1, 2).unflatten(2, (side, side))) for x in scale_features]

    def forward(self, scale_features: tuple[Tensor, ...], photo_of_target: Tensor, states: Tensor) -> tuple[Tensor, list[Tensor]]:
        """states (K, L*N, D) of targets on photos `photo_of_target` (K,) -> logits (K, M, M) and the L scales' own."""
        return self.decoder(self.decoder_features(scale_features), photo_of_target, self.fuse(states), self.mask_size)


class PixelLMPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial values."""

    config_class = PixelLMConfig
    base_model_prefix = "pixellm"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initial values of what is ours; tower and language model bring their own.

        Xavier instead of torch's default, and learned tokens of 0.1: with torch's defaults and tokens of 1 the
        decoder learns more slowly from what it is asked (docs/log.md).
        """
        if isinstance(module, Codebook):
            for rows in (module.input_rows, module.output_rows):
                nn.init.normal_(rows, std=getattr(self.config.text_config, "initializer_range", 0.02))
        elif isinstance(module, FourierPosition):
            nn.init.normal_(module.frequencies)
        elif isinstance(module, PixelDecoder):
            for tokens in (module.iou_token, module.mask_tokens, module.level_embed, module.no_mask_embed):
                nn.init.normal_(tokens, std=0.1)
            nn.init.constant_(module.gamma, 1 / len(module.gamma))
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | LayerNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class PixelLMForConditionalGeneration(PixelLMPreTrainedModel):
    """The whole model. Any vision tower that returns patch tokens and any decoder-only language model fit by configuration."""

    def __init__(self, config: PixelLMConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.projector = _projector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.codebook = Codebook(len(config.codebook_token_ids), config.text_config.hidden_size)
        self.mask_head = MaskHead(config)
        self._tower_takes_mask = config.mask_padding and config.vision_config.model_type == "clip_vision_model"
        if config.mask_padding and not self._tower_takes_mask:
            accepted = inspect.signature(self.vision_tower.forward).parameters
            self._tower_takes_mask = "attention_mask" in accepted
        self.post_init()

    def encode_photos(self, pixel_values: Tensor, resized_sizes_hw: Tensor) -> PhotoFeatures:
        """One pass of the vision tower over B photos.

        pixel_values: (B, 3, S, S) normalised, padded right and bottom. resized_sizes_hw: (B, 2) int64, the unpadded size.
        """
        extra = {}
        if self._tower_takes_mask:
            extra["attention_mask"] = self._patch_attention_mask(resized_sizes_hw)
        hidden_states = self.vision_tower(pixel_values=pixel_values.to(self.dtype), output_hidden_states=True, **extra).hidden_states
        num_patches = self.config.patches_per_side**2
        scale_features = tuple(hidden_states[layer][:, -num_patches:] for layer in self.config.vision_feature_layers)
        side = self.config.image_tokens_per_side
        grid = scale_features[0].transpose(1, 2).unflatten(2, (self.config.patches_per_side, -1))
        pooled = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        return PhotoFeatures(image_embeds=self.projector(pooled), scale_features=scale_features)

    def _patch_attention_mask(self, resized_sizes_hw: Tensor) -> Tensor | None:
        """(B, 1, 1, tokens) additive: patches that hold only padding are hidden as keys; prefix tokens never are. None if none is."""
        side, patch = self.config.patches_per_side, self.config.vision_config.patch_size
        start = torch.arange(side, device=resized_sizes_hw.device) * patch
        rows, columns = start < resized_sizes_hw[:, :1], start < resized_sizes_hw[:, 1:]
        visible = (rows[:, :, None] & columns[:, None, :]).flatten(1)
        if bool(visible.all()):
            return None
        num_prefix = self.vision_tower.embeddings.num_positions - side**2 if hasattr(self.vision_tower.embeddings, "num_positions") else 0
        visible = F.pad(visible, (num_prefix, 0), value=True)
        hidden = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device).masked_fill(~visible, torch.finfo(self.dtype).min)
        return hidden[:, None, None, :]

    def embed_tokens(self, input_ids: Tensor, image_embeds: Tensor | None) -> Tensor:
        """(Q, T) ids -> (Q, T, D). `image_embeds` (Q, I, D) fill the image placeholders of each conversation, None where there are none."""
        is_image = input_ids == self.config.image_token_id
        slots = input_ids.unsqueeze(-1) == torch.tensor(self.config.codebook_token_ids, device=input_ids.device)
        is_codebook = slots.any(-1)
        embeds = self.language_model.get_input_embeddings()(input_ids.masked_fill(is_image | is_codebook, 0))
        rows = self.codebook.input_rows.to(embeds.dtype)
        embeds = torch.where(is_codebook.unsqueeze(-1), slots.to(embeds.dtype) @ rows, embeds)
        num_found, num_given = int(is_image.sum()), 0 if image_embeds is None else image_embeds.shape[0] * image_embeds.shape[1]
        if num_found != num_given:
            raise ModelError(f"found {num_found} image placeholders in the prompts but {num_given} image embeddings; "
                             f"each prompt needs {self.config.num_image_tokens}")
        if image_embeds is None:
            return embeds
        return embeds.masked_scatter(is_image.unsqueeze(-1), image_embeds.to(embeds.dtype))

    def token_logits(self, hidden_states: Tensor) -> Tensor:
        """(…, D) final hidden states -> (…, V), with the codebook's own rows at `codebook_token_ids`."""
        logits = self.language_model.get_output_embeddings()(hidden_states)
        ids = torch.tensor(self.config.codebook_token_ids, device=logits.device)
        missing = max(self.config.codebook_token_ids) + 1 - logits.shape[-1]
        if missing > 0:
            logits = F.pad(logits, (0, missing), value=torch.finfo(logits.dtype).min)
        return logits.index_copy(-1, ids, (hidden_states @ self.codebook.output_rows.T).to(logits.dtype))

    def codebook_states(self, hidden_states: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """States that predict the codebook tokens: the hidden state at the position before each of them.

        Returns states (K, L*N, D) and the conversation of each target (K,). Raises ModelError for a broken group.
        """
        ids = torch.tensor(self.config.codebook_token_ids, device=input_ids.device)
        conversation, start = (input_ids == ids[0]).nonzero(as_tuple=True)
        offsets = torch.arange(len(ids), device=input_ids.device)
        positions = start[:, None] + offsets
        num_codebook_tokens = int((input_ids.unsqueeze(-1) == ids).any(-1).sum())
        is_whole = num_codebook_tokens == len(start) * len(ids) and bool((start > 0).all()) and bool((positions < input_ids.shape[1]).all())
        if not is_whole or not bool((input_ids[conversation[:, None], positions] == ids).all()):
            raise ModelError(f"found {num_codebook_tokens} codebook tokens and {len(start)} group starts; "
                             f"a target is the whole group {ids.tolist()} in this order, after at least one token")
        return hidden_states[conversation[:, None], positions - 1], conversation

    def forward(self, pixel_values: Tensor, resized_sizes_hw: Tensor, photo_index: Tensor, input_ids: Tensor,
                attention_mask: Tensor, decode_masks: bool = True) -> PixelLMOutput:
        """Teacher-forced pass over Q conversations about B photos; each photo goes through the tower once.

        pixel_values (B, 3, S, S) float; resized_sizes_hw (B, 2) int64; photo_index (Q,) int64 in [0, B);
        input_ids (Q, T) int64, padded right; attention_mask (Q, T), 0 at padding and at image tokens that hold only padding.
        Raises ModelError when T is more than the language model has positions.
        """
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit and input_ids.shape[1] > limit:
            raise ModelError(f"the conversations take {input_ids.shape[1]} tokens, the language model has {limit} positions")
        photos = self.encode_photos(pixel_values, resized_sizes_hw)
        inputs_embeds = self.embed_tokens(input_ids, photos.image_embeds[photo_index])
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        hidden_states = self.language_model.base_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=positions, use_cache=False).last_hidden_state
        logits = self.token_logits(hidden_states)
        if not decode_masks:
            return PixelLMOutput(logits=logits, hidden_states=hidden_states)
        states, target_conversation = self.codebook_states(hidden_states, input_ids)
        mask_logits, scale_mask_logits = self.mask_head(photos.scale_features, photo_index[target_conversation], states)
        return PixelLMOutput(logits=logits, hidden_states=hidden_states, mask_logits=mask_logits,
                             scale_mask_logits=tuple(scale_mask_logits), target_conversation=target_conversation)
