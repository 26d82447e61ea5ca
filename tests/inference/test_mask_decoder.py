"""The mask decoder gives the numbers of the model's own mask head, for any number of scales and any mix of photos."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from pixellm.inference import mask_decoder
from pixellm.inference.mask_decoder import MaskDecoder
from pixellm.model import PixelLMConfig, PixelLMForConditionalGeneration
from pixellm.model.modeling_pixellm import MaskHead

PHOTO_OF_TARGET = [1, 0, 1, 1, 3, 1, 1, 0]


def build_mask_head(patches_per_side: int = 6, width: int = 32, scales: tuple[int, ...] = (1, 2), seed: int = 0, **more) -> MaskHead:
    config = PixelLMConfig(
        vision_config=CLIPVisionConfig(hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=14,
                                       image_size=14 * patches_per_side),
        text_config=LlamaConfig(vocab_size=16, hidden_size=40, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2),
        image_token_id=16, codebook_token_ids=list(range(17, 17 + 2 * len(scales))), num_tokens_per_scale=2,
        vision_feature_layers=[-1] * len(scales), scale_upsampling=list(scales), image_tokens_per_side=patches_per_side,
        **{"decoder_hidden_size": width, "decoder_num_heads": 4, "decoder_mlp_size": 48, "mask_channels": 8, **more})
    torch.manual_seed(seed)
    head = PixelLMForConditionalGeneration(config).mask_head.eval().requires_grad_(False)
    for parameter in head.parameters():  # norms and biases that do nothing would hide a mistake
        parameter += 0.1 * torch.randn_like(parameter)
    return head


def random_inputs(head: MaskHead, num_photos: int, num_targets: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    side = head.mask_size // (2 * max(head.decoder.scale_upsampling))
    features = tuple(torch.randn(num_photos, side**2, head.projector[0].in_features) for _ in range(head.num_scales))
    return features, torch.randn(num_targets, head.num_scales * head.num_tokens_per_scale, head.projector[2].out_features)


def decode(head, features, photo_of_target, states):
    decoder = MaskDecoder(head)
    photos = [decoder.prepare([scale[photo] for scale in features]) for photo in range(len(features[0]))]
    return decoder.decode(photos, photo_of_target, states)


@pytest.mark.parametrize("options", [
    {}, {"scales": (1,)}, {"scales": (1, 2, 2)}, {"scales": (2, 1)}, {"scales": (1, 1)}, {"decoder_depth": 1}, {"decoder_depth": 3},
    {"decoder_num_heads": 1}, {"patches_per_side": 5, "width": 48}, {"fusion": "mean"}, {"mask_channels": 3},
], ids=str)
def test_any_architecture(options):
    head = build_mask_head(**options)
    features, states = random_inputs(head, 4, len(PHOTO_OF_TARGET))
    expected, _ = head(features, torch.tensor(PHOTO_OF_TARGET), states)
    assert expected.std() > 0.1
    decoded = decode(head, features, PHOTO_OF_TARGET, states)
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=0)  # 2.9e-5 seen, logits of deviation 0.4 to 2


def test_full_size_is_as_exact_as_the_mask_head():
    head = build_mask_head(32, 256, decoder_num_heads=8, decoder_mlp_size=2048, mask_channels=32)
    features, states = random_inputs(head, 2, 3)
    owners = [0, 1, 1]
    decoded = decode(head, features, owners, states)
    ours, _ = head(features, torch.tensor(owners), states)
    exact, _ = head.double()(tuple(scale.double() for scale in features), torch.tensor(owners), states.double())
    # Logits of deviation 6.4: 1.7e-4 seen between the two, 3e-4 seen from either to the float64 run.
    torch.testing.assert_close(decoded, ours, atol=1e-3, rtol=0)
    assert (decoded - exact).abs().max() < 2 * (ours - exact).abs().max()


def test_chunks_do_not_change_the_masks(monkeypatch):
    head = build_mask_head()
    features, states = random_inputs(head, 4, len(PHOTO_OF_TARGET))
    whole = decode(head, features, PHOTO_OF_TARGET, states)
    monkeypatch.setattr(mask_decoder, "CHUNK_CELLS", 1)
    torch.testing.assert_close(decode(head, features, PHOTO_OF_TARGET, states), whole, atol=1e-4, rtol=0)  # 3.7e-6 seen


def test_no_targets():
    head = build_mask_head()
    features, states = random_inputs(head, 1, 0)
    assert decode(head, features, [], states).shape == (0, head.mask_size, head.mask_size)


def test_bytes_of_a_photo():
    head = build_mask_head(patches_per_side=4, width=32)
    features, _ = random_inputs(head, 1, 0)
    # cells of both scales, (32 wide + 3 projections of 16) in float32
    assert MaskDecoder(head).prepare([scale[0] for scale in features]).num_bytes == (16 + 64) * (32 + 3 * 16) * 4


def test_bfloat16_is_no_worse_than_the_mask_head_in_bfloat16():
    head = build_mask_head(16, 128, decoder_num_heads=8)
    features, states = random_inputs(head, 2, 6)
    owners = [0, 1, 1, 0, 0, 1]
    exact, _ = head(features, torch.tensor(owners), states)
    head, features, states = head.bfloat16(), tuple(scale.bfloat16() for scale in features), states.bfloat16()
    expected, _ = head(features, torch.tensor(owners), states)
    errors = [(masks.float() - exact).square().mean().sqrt() for masks in (decode(head, features, owners, states), expected)]
    assert errors[0] < 1.5 * errors[1]  # root mean square 0.053 and 0.047 seen, logits of deviation 1.2
