"""Counts against sums by hand: on the smallest preset, and Segment Anything's tower."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pixellm.model.flops import Workload, count_flops, count_pixellm, count_sam_based, count_training
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration
from pixellm.model.presets import tiny_config

WORKLOAD = Workload(prompt_tokens=20, answer_tokens=7, num_targets=3)


@pytest.fixture(scope="module")
def counted():
    return count_pixellm(tiny_config(), WORKLOAD)


def language_model_macs(length: int, past: int) -> int:
    config = tiny_config().text_config
    d, layers = config.hidden_size, config.num_hidden_layers
    products = length * (4 * d * d + 3 * d * config.intermediate_size)
    attention = 2 * length * (past + length) * d
    return layers * (products + attention) + d * config.vocab_size


def test_tower_and_projector(counted):
    config = tiny_config()
    d, patches = config.vision_config.hidden_size, config.patches_per_side**2
    tokens = patches + 1
    layer = tokens * (4 * d * d + 2 * d * config.vision_config.intermediate_size) + 2 * tokens * tokens * d
    assert counted["vision tower"] == 2 * (patches * d * 3 * 8 * 8 + config.vision_config.num_hidden_layers * layer)
    assert counted["projector"] == 2 * config.num_image_tokens * (d * 2 * d + 2 * d * d)


def test_language_model(counted):
    config = tiny_config()
    prompt = config.num_image_tokens + WORKLOAD.prompt_tokens
    steps = WORKLOAD.answer_tokens + WORKLOAD.num_targets * len(config.codebook_token_ids) - 1
    assert counted["language model, prefill"] == 2 * language_model_macs(prompt, 0)
    assert counted["language model, decode"] == 2 * sum(language_model_macs(1, prompt + step) for step in range(steps))


def test_mask_head(counted):
    config = tiny_config()
    d, c, k, side = config.text_config.hidden_size, config.decoder_hidden_size, WORKLOAD.num_targets, config.patches_per_side
    patches, n, half = side * side, config.num_tokens_per_scale, c // 2
    features = 2 * patches * (2 * d * config.vision_config.hidden_size + 2 * d * d + d * c + 9 * c * c)
    states = k * 2 * (n * (d * d + d * c) + n * c * c)

    def attention(queries: int, keys: int, width: int) -> int:
        return 2 * queries * c * width + 2 * keys * c * width + 2 * queries * keys * width

    tokens, decoder = 6, patches * c * c * 4  # the second scale's features are upsampled once, for all targets
    for grid_side in (side, 2 * side):
        cells = grid_side**2
        block = (attention(tokens, tokens, c) + attention(tokens, cells, half) + 2 * tokens * c * config.decoder_mlp_size
                 + attention(cells, tokens, half))
        upscaled = cells * c * config.mask_channels * 4
        head = 2 * c * c + c * config.mask_channels + config.mask_channels * 4 * cells
        decoder += cells * 2 * half + k * (config.decoder_depth * block + attention(tokens, cells, half) + upscaled + head)
    assert counted["mask head"] == 2 * (features + states + decoder)


def test_the_sam_based_model():
    """SAM ViT-H (arXiv 2304.02643): 28 layers in windows of 14 x 14, padded to 70 x 70, 4 over all 64 x 64; relative positions in each."""
    d, cells, padded, window = 1280, 64 * 64, 70 * 70, 14
    mlp = cells * 2 * d * 5120
    windowed = padded * (4 * d * d + 2 * window * window * d + 2 * window * d) + mlp
    whole = cells * (4 * d * d + 2 * cells * d + 2 * 64 * d) + mlp
    neck = cells * (d * 256 + 9 * 256 * 256)
    parts = count_sam_based(tiny_config(), WORKLOAD)
    assert parts["SAM tower"] == 2 * (cells * d * 3 * 16 * 16 + 28 * windowed + 4 * whole + neck)
    assert parts["language model, decode"] < count_pixellm(tiny_config(), WORKLOAD)["language model, decode"], "one token for each target"


def test_no_target_and_no_answer_are_nothing_to_decode():
    parts = count_pixellm(tiny_config(), Workload(prompt_tokens=1, answer_tokens=1, num_targets=0))
    assert parts["language model, decode"] == 0 and parts["language model, prefill"] > 0


@pytest.mark.parametrize("frozen", [(), ("vision_tower", "projector"), ("vision_tower", "projector", "codebook", "language_model")])
def test_training_against_a_counted_step(frozen):
    """Forward and backward of a real batch: what the estimate leaves out is the codebook's own products and the padding."""
    model = PixelLMForConditionalGeneration(tiny_config())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] not in frozen)
    config, length, masks_each = model.config, 90, 3
    group = torch.tensor(config.codebook_token_ids)
    ids = torch.full((2, length), 5)
    ids[:, :config.num_image_tokens] = config.image_token_id
    for place in range(masks_each):
        start = 50 + place * (len(group) + 1)
        ids[:, start:start + len(group)] = group

    def step() -> None:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's fused attention
            output = model(torch.randn(2, 3, 96, 96), torch.tensor([[96, 96]] * 2), torch.arange(2), ids, torch.ones_like(ids))
            (output.logits.float().sum() + output.mask_logits.sum()).backward()

    parts = {"vision_tower", "projector", "codebook", "language_model", "mask_head"} - set(frozen)
    estimate = count_training(config, parts, has_adapters=False)
    assert estimate.of(2, 2 * length, 2, 2 * masks_each) == pytest.approx(count_flops(step), rel=0.05)
