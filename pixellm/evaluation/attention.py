"""Where each codebook token looks: the decoder's attention over the photo for its prompt alone (figure of single tokens in the paper)."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from pixellm.inference.requests import PhotoInput
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.modeling_pixellm import MaskHead
from pixellm.model.pixel_decoder import Attention
from pixellm.model.processing_pixellm import SEG, resize_to_photo


def to_template(text: str, spans: Sequence[Sequence[int]]) -> str:
    """An answer's text with `{seg}` after the words of each mask."""
    for _, stop in reversed(spans):
        text = f"{text[:stop]} {SEG}{text[stop:]}"
    return text


@torch.inference_mode()
def token_attention(model: PixelLMForConditionalGeneration, processor: PixelLMProcessor, image: Image.Image, question: str,
                    answer: str) -> Tensor:
    """Attention (K, L, N, H, W) float32 in [0, 1] of the upright photo, for the K `{seg}` of `answer`, L scales and N tokens of each.

    Of token n of a scale: the others are left out of the fusion, and the prompt's last look at the grid is averaged over the heads and
    divided by its largest value.
    """
    photo = PhotoInput.from_image(image, processor.image_processor)
    device = model.device
    pixels = photo.pixel_values[None].to(device, model.dtype)
    sizes = torch.tensor([photo.resized_size_hw], device=device)
    ids = torch.tensor([processor.conversation_ids(question, answer)[0]], device=device)
    seen = torch.ones_like(ids)
    seen[ids == model.config.image_token_id] = torch.tensor(photo.image_token_mask, dtype=ids.dtype, device=device)
    output = model(pixels, sizes, torch.zeros(1, dtype=torch.int64, device=device), ids, seen, decode_masks=False)
    states, owners = model.codebook_states(output.hidden_states, ids)
    head = model.mask_head
    features = head.decoder_features(model.encode_photos(pixels, sizes).scale_features)
    maps = torch.zeros(len(states), head.num_scales, head.num_tokens_per_scale, *photo.photo_size_hw)
    for token in range(head.num_tokens_per_scale if len(states) else 0):
        for scale, weights in enumerate(_decode(head, features, owners, head.fuse(states, only_token=token))):
            side = round(weights.shape[-1] ** 0.5)
            grids = resize_to_photo(weights.unflatten(-1, (side, side)), processor.image_processor.image_size, photo.resized_size_hw,
                                    photo.photo_size_hw)
            maps[:, scale, token] = (grids / grids.amax((1, 2), keepdim=True).clamp(min=1e-12)).cpu()
    return maps


def _decode(head: MaskHead, features: list[Tensor], owners: Tensor, prompts: Tensor) -> list[Tensor]:
    """The weights of each scale's last attention over the grid."""
    looked: list[Tensor] = []
    hooks = [transformer.final_attn_token_to_image.register_forward_pre_hook(
        lambda module, inputs: looked.append(_weights(module, *inputs))) for transformer in head.decoder.transformers]
    try:
        head.decoder(features, owners, prompts, head.mask_size)
    finally:
        for hook in hooks:
            hook.remove()
    return looked


def _weights(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of the prompt, the last token, over the cells (K, G), in the mean of the heads."""
    q, k = attention._heads(attention.q_proj(query[:, -1:])), attention._heads(attention.k_proj(key))
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).float().softmax(-1).mean(1).squeeze(1)
