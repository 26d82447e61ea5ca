"""Where single codebook tokens look."""

import numpy as np
import torch

from pixellm.drawing import draw_heat
from pixellm.evaluation.attention import to_template, token_attention
from pixellm.testing import random_photo, tiny_model_and_processor


def test_the_template_of_an_answer():
    assert to_template("the cat and the dog.", [(0, 7), (12, 19)]) == "the cat {seg} and the dog {seg}."
    assert to_template("they", [(0, 4), (0, 4)]) == "they {seg} {seg}" and to_template("none.", []) == "none."


def test_maps_of_every_mask_scale_and_token():
    model, processor = tiny_model_and_processor()
    photo = random_photo(60, 90)
    maps = token_attention(model, processor, photo, "where is the red circle?", "the red circle {seg} and the blue ring {seg}.")
    config = model.config
    assert maps.shape == (2, config.num_scales, config.num_tokens_per_scale, 60, 90)
    assert maps.min() >= 0 and torch.allclose(maps.amax((-1, -2)), torch.ones(maps.shape[:3]))
    tokens = maps.flatten(3)
    assert not torch.allclose(tokens[:, :, 0], tokens[:, :, 1], atol=1e-3), "each token looks in its own way"
    assert len(token_attention(model, processor, photo, "what is there?", "nothing.")) == 0


def test_weights_are_those_that_the_decoder_uses():
    """With the others' part given back, tokens fuse to the prompt that the decoder gets."""
    model, _ = tiny_model_and_processor()
    head = model.mask_head
    states = torch.randn(2, head.num_scales * head.num_tokens_per_scale, model.config.text_config.hidden_size)
    with torch.inference_mode():
        alone = sum(head.fuse(states, only_token=token) for token in range(head.num_tokens_per_scale))
        bias = 0 if head.fusion is None else (head.num_tokens_per_scale - 1) * head.fusion.bias
        torch.testing.assert_close(alone - bias, head.fuse(states), atol=1e-5, rtol=0)  # 3e-7 seen


def test_heat_is_the_photo_where_it_is_cold():
    photo = random_photo(8, 8)
    heat = np.zeros((8, 8))
    heat[0, 0] = 1
    picture = np.asarray(draw_heat(photo, heat))
    assert picture[0, 0].tolist() == [230, 159, 0]
    assert (picture[1:, :, 0] == picture[1:, :, 1]).all() and picture[1:].std() > 5
