"""The CPU's ways: the same products as torch's own, by other kernels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from pixellm.inference.cpu import (
    attend,
    head_by_head_attention,
    linear,
    use_inference_attention,
    use_inference_linear,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 7), (3, 5, 7), (0, 7)], ids=str)
def test_linear_is_torchs(dtype, shape):
    x, weight, bias, plus = (torch.randn(*size, dtype=dtype) for size in (shape, (11, 7), (11,), (*shape[:-1], 11)))
    tolerance = {"atol": 1e-5 if dtype != torch.bfloat16 else 0.1, "rtol": 0}  # 2.5e-6 and 0.055 seen in 300 draws
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), **tolerance)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), **tolerance)
    kept = plus.clone()
    torch.testing.assert_close(linear(x, weight, bias, plus), F.linear(x, weight, bias) + plus, **tolerance)
    assert torch.equal(plus, kept)


def test_transposed_views_are_taken_as_they_are():
    x, weight = torch.randn(9, 6).t(), torch.randn(9, 4).t()
    torch.testing.assert_close(linear(x, weight), x @ weight.t(), atol=1e-5, rtol=0)  # 1.4e-6 seen


@pytest.mark.parametrize("stride", [(12, 1), (12, 2), (1, 9)], ids=str)
def test_any_strides(stride):
    x, weight = torch.randn(3, 6), torch.randn(200).as_strided((4, 6), stride)
    torch.testing.assert_close(linear(x, weight), x @ weight.t(), atol=1e-5, rtol=0)  # 1e-6 seen


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "intermediate_size": 48}


@pytest.mark.parametrize("config", [CLIPVisionConfig(**SMALL), SiglipVisionConfig(**SMALL), Dinov2Config(**SMALL)],
                         ids=lambda config: config.model_type)
@torch.inference_mode()
def test_towers_see_the_same(config):
    tower = AutoModel.from_config(config).eval()
    pixels, mask = torch.randn(2, 3, 32, 32), {}
    if config.model_type == "clip_vision_model":  # the one that takes a mask
        mask["attention_mask"] = torch.zeros(2, 1, 1, 17)
        mask["attention_mask"][1, :, :, 9:] = torch.finfo(torch.float32).min
    expected = tower(pixel_values=pixels, **mask).last_hidden_state
    use_inference_attention(tower)
    torch.testing.assert_close(tower(pixel_values=pixels, **mask).last_hidden_state, expected, atol=1e-5, rtol=0)  # 2e-6 seen


@pytest.mark.parametrize("mask_shape", [None, (2, 1, 1, 9), (1, 4, 9, 9), (2, 4, 9, 9)], ids=str)
def test_attention_is_torchs(mask_shape):
    query, (key, value) = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 2, 9, 8)
    mask = None if mask_shape is None else torch.randn(mask_shape)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    output, _ = head_by_head_attention(nn.Identity(), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)  # 8e-7 seen


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.bfloat16, 0.03)])  # 0.021 seen in 300 draws
@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attending_is_torchs(dtype, tolerance, num_rows, is_masked):
    query, slots = torch.randn(3, 2, num_rows, 16), torch.randn(2, 3, 2, 20, 16)
    key, value = slots[:, :, :, :11]
    mask = torch.zeros(3, 1, num_rows, 11).masked_fill_(torch.rand(3, 1, num_rows, 11) < 0.3, -torch.inf) if is_masked else None
    if mask is not None:
        mask[..., 0] = 0  # each row sees something
    expected = F.scaled_dot_product_attention(query, key, value, mask)
    found = attend(query.to(dtype), key.to(dtype), value.to(dtype), mask if mask is None else mask.to(dtype), False, None)
    torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)


@torch.inference_mode()
def test_models_keep_their_weights_and_results():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3, bias=False)))
    x = torch.randn(4, 5)
    expected, names = model(x), list(model.state_dict())
    use_inference_linear(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)  # 1e-7 seen
