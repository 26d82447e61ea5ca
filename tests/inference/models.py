"""Small random models that name targets, and questions for them."""

import torch

from pixellm.inference.requests import PhotoInput, Request
from pixellm.testing import generate_alone, random_photo, tiny_model_and_processor

QUESTIONS = ("where is the red circle?", "what?", "where is the blue ring, the red one and the other square?", "the green")
SIZES_HW = ((96, 96), (60, 96), (96, 30), (200, 120))


@torch.no_grad()
def speaking_model_and_processor(seed: int = 3):
    """The random `tiny` model; its first codebook token wins wherever it would have said one of its own frequent words."""
    model, processor = tiny_model_and_processor(seed)
    said, _ = generate_alone(model, Request(photo_inputs(processor)[0], processor.prompt_ids(QUESTIONS[0]), 12))
    model.codebook.output_rows[0].copy_(1.01 * model.language_model.get_output_embeddings().weight[said.token_ids[5]])
    return model, processor


def photos():
    return [random_photo(*size_hw, seed=index) for index, size_hw in enumerate(SIZES_HW)]


def photo_inputs(processor):
    return [PhotoInput.from_image(photo, processor.image_processor) for photo in photos()]
