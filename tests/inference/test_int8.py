"""Weights in eight bits: what is rounded and by how much, and that the engine answers with them."""

import pytest
import torch
from torch import nn

from pixellm.inference.int8 import Int8Linear, use_int8_weights
from pixellm.inference.segmenter import Segmenter
from tests.inference.models import QUESTIONS, photos, speaking_model_and_processor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_off_by_at_most_half_a_step(dtype):
    torch.manual_seed(0)
    source = nn.Linear(40, 30).to(dtype)
    with torch.no_grad():
        source.weight[3] = 0  # a row without a largest number
    rounded = Int8Linear(source)
    back = rounded.weight.double() * source.weight.double().abs().amax(1, keepdim=True) / 127
    step = source.weight.double().abs().amax(1, keepdim=True) / 127
    assert ((back - source.weight.double()).abs() <= 0.5001 * step).all()
    x = torch.randn(7, 40, dtype=dtype)
    expected = x.double() @ back.T + source.bias.double()
    # bfloat16 keeps 8 bits: of the scale, of the product and of the sum
    assert (rounded(x).double() - expected).abs().max() < {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]


def test_the_engine_answers_with_them_and_the_weights_are_a_quarter():
    model, processor = speaking_model_and_processor()
    layers = model.language_model.base_model.layers
    before = sum(each.nbytes for each in layers.parameters())
    exact = Segmenter(model, processor).segment(photos(), QUESTIONS, max_new_tokens=24)
    use_int8_weights(model)
    after = sum(each.nbytes for each in (*layers.parameters(), *layers.buffers()))
    assert 0.25 < after / before < 0.3
    rounded = Segmenter(model, processor).segment(photos(), QUESTIONS, max_new_tokens=24)
    assert [answer.num_tokens for answer in rounded] == [answer.num_tokens for answer in exact]
    assert any(answer.targets for answer in rounded)
