"""Floating-point operations of one answer, counted by torch on the `meta` device, part by part: PixelLM's, and a SAM-based model's.

The SAM-based model is the one that PixelLM's paper compares with, LISA (arXiv 2308.00692): the same language model, CLIP at 224 for it, and
Segment Anything's ViT-H at 1024 with its mask decoder for the masks. A multiply-add counts as two operations. Language models keep a KV
cache, and only the last position of the prompt goes to the vocabulary.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, SamConfig, SamModel, SamVisionConfig

from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration

SAM_VIT_H = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
             "global_attn_indexes": [7, 15, 23, 31]}
LISA_IMAGE_SIZE, LISA_PATCH_SIZE = 224, 14
SAM_WIDTH, SAM_GRID = 256, 64


@dataclass(frozen=True)
class Workload:
    """One photo and one question: tokens of the prompt beside the photo's, tokens of the answer beside its targets', and targets."""

    prompt_tokens: int
    answer_tokens: int
    num_targets: int


@torch.no_grad()
def count_flops(function: Callable[[], object]) -> int:
    """Operations of matrix products, attention and convolutions in `function`; the rest is not counted.

    Attention runs as products: torch's counter does not know the fused one of CPUs.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def count_pixellm(config: PixelLMConfig, workload: Workload) -> dict[str, int]:
    """Operations of PixelLM by part."""
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config).eval()
        side, width, vision_width = config.vision_config.image_size, config.text_config.hidden_size, config.vision_config.hidden_size
        num_codebook_tokens = len(config.codebook_token_ids)
        pixels = torch.empty(1, 3, side, side)
        scale_features = tuple(torch.empty(1, config.patches_per_side**2, vision_width) for _ in range(config.num_scales))
        photo_of_target = torch.zeros(workload.num_targets, dtype=torch.int64)
        states = torch.empty(workload.num_targets, num_codebook_tokens, width)
        prompt = config.num_image_tokens + workload.prompt_tokens
        return {
            "vision tower": count_flops(lambda: model.vision_tower(pixels)),
            "projector": count_flops(lambda: model.projector(torch.empty(1, config.num_image_tokens, vision_width))),
            **_count_language_model(model.language_model, prompt, workload.answer_tokens + workload.num_targets * num_codebook_tokens),
            "mask head": count_flops(lambda: model.mask_head(scale_features, photo_of_target, states)),
        }


def count_sam_based(config: PixelLMConfig, workload: Workload) -> dict[str, int]:
    """Operations of the SAM-based model with the language model of `config`, by part; one token for each target."""
    with torch.device("meta"):
        language_model = PixelLMForConditionalGeneration(config).language_model.eval()
        width, vision_width = config.text_config.hidden_size, config.vision_config.hidden_size
        tower = CLIPVisionModel(CLIPVisionConfig.from_dict(
            config.vision_config.to_dict() | {"image_size": LISA_IMAGE_SIZE, "patch_size": LISA_PATCH_SIZE})).eval()
        num_image_tokens = (LISA_IMAGE_SIZE // LISA_PATCH_SIZE) ** 2
        answer_length = workload.answer_tokens + workload.num_targets
        sam = SamModel(SamConfig(vision_config=SamVisionConfig(**SAM_VIT_H))).eval()
        sam_size = sam.config.vision_config.image_size
        grid = torch.empty(1, SAM_WIDTH, SAM_GRID, SAM_GRID)
        projector = nn.Linear(vision_width, width)
        state_projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, SAM_WIDTH))
        return {
            "vision tower": count_flops(lambda: tower(torch.empty(1, 3, LISA_IMAGE_SIZE, LISA_IMAGE_SIZE))),
            "projector": count_flops(lambda: projector(torch.empty(1, num_image_tokens, vision_width))),
            **_count_language_model(language_model, num_image_tokens + workload.prompt_tokens, answer_length),
            "SAM tower": count_flops(lambda: sam.vision_encoder(torch.empty(1, 3, sam_size, sam_size))),
            "mask head": count_flops(lambda: sam.mask_decoder(
                image_embeddings=grid, image_positional_embeddings=grid, dense_prompt_embeddings=grid, multimask_output=False,
                sparse_prompt_embeddings=state_projection(torch.empty(1, workload.num_targets, 1, width)))),
        }


def _count_language_model(language_model: nn.Module, prompt_length: int, answer_length: int) -> dict[str, int]:
    """Prefill, and the steps after it: the first token of the answer comes out of the prefill."""
    config = language_model.config

    def forward(length: int, past: int) -> None:
        cache = DynamicCache(config=config)
        if past:
            head_size = config.hidden_size // config.num_attention_heads
            for layer in range(config.num_hidden_layers):
                rows = torch.empty(1, config.num_key_value_heads, past, head_size)
                cache.update(rows, rows, layer)
        hidden = language_model.base_model(  # a given mask: what makes one looks at its values, and there are none on `meta`
            inputs_embeds=torch.empty(1, length, config.hidden_size), attention_mask=torch.empty(1, 1, length, past + length),
            past_key_values=cache, use_cache=True).last_hidden_state
        language_model.get_output_embeddings()(hidden[:, -1:])

    num_steps = max(answer_length - 1, 0)
    first, last = (count_flops(lambda past=past: forward(1, past)) for past in (prompt_length, prompt_length + max(num_steps - 1, 0)))
    # A step's operations grow by the same number with each token before it.
    return {"language model, prefill": count_flops(lambda: forward(prompt_length, 0)),
            "language model, decode": num_steps * (first + last) // 2}


@dataclass(frozen=True)
class TrainingFlops:
    """Operations of a training step, forward and backward, by what they grow with: a photo, a token, a pair of tokens, a mask."""

    per_photo: float
    per_token: float
    per_token_pair: float
    per_mask: float

    def of(self, num_photos: float, num_tokens: float, num_conversations: float, num_masks: float) -> float:
        """Of a step. Conversations count as if all were of their mean length; what gradient checkpointing does again is not counted."""
        pairs = num_tokens**2 / max(num_conversations, 1)
        return self.per_photo * num_photos + self.per_token * num_tokens + self.per_token_pair * pairs + self.per_mask * num_masks


def count_training(config: PixelLMConfig, trained_parts: Collection[str], has_adapters: bool, decodes_masks: bool = True) -> TrainingFlops:
    """What a step takes when `trained_parts` are trained; of the language model only adapters, where it `has_adapters`.

    A backward pass is once the forward's operations for the gradient of what goes into a part, if anything before it is trained, and once
    for the gradient of its weights, if these are. The adapters' own operations, under a hundredth, are left out.
    """
    forward = {"vision tower": 0, "projector": 0, "mask head": 0, "mask": 0, "token": 0.0, "pair": 0.0}
    with torch.device("meta"):
        model = PixelLMForConditionalGeneration(config).eval()
        side, width, vision_width = config.vision_config.image_size, config.text_config.hidden_size, config.vision_config.hidden_size
        forward["vision tower"] = count_flops(lambda: model.vision_tower(torch.empty(1, 3, side, side)))
        forward["projector"] = count_flops(lambda: model.projector(torch.empty(1, config.num_image_tokens, vision_width)))
        if decodes_masks:
            features = tuple(torch.empty(1, config.patches_per_side**2, vision_width) for _ in range(config.num_scales))
            one, two = (count_flops(lambda num=num: model.mask_head(
                features, torch.zeros(num, dtype=torch.int64), torch.empty(num, len(config.codebook_token_ids), width))) for num in (1, 2))
            forward["mask"], forward["mask head"] = two - one, 2 * one - two
        length = 64
        short, long = (count_flops(lambda num=num: model.language_model(
            inputs_embeds=torch.empty(1, num, width), attention_mask=torch.empty(1, 1, num, num))) for num in (length, 2 * length))
        forward["pair"] = (long - 2 * short) / (2 * length**2)
        forward["token"] = (short - forward["pair"] * length**2) / length
    tower, projector, language_model = (part in trained_parts for part in ("vision_tower", "projector", "language_model"))
    before_language_model = tower or projector or "codebook" in trained_parts
    times = {
        "tower": 1 + 2 * tower, "projector": 1 + tower + projector, "mask": 3 if "mask_head" in trained_parts else 2,
        "language model": 1 + (before_language_model or language_model) + (language_model and not has_adapters)}
    return TrainingFlops(
        per_photo=(times["tower"] * forward["vision tower"] + times["projector"] * forward["projector"]
                   + times["mask"] * forward["mask head"]),
        per_token=times["language model"] * forward["token"], per_token_pair=times["language model"] * forward["pair"],
        per_mask=times["mask"] * forward["mask"])
