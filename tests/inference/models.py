"""Small random models that name targets, and questions for them."""

import torch
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from pixellm.inference.requests import PhotoInput, Request
from pixellm.inference.sampling import Greedy
from pixellm.model import PixelLMConfig, PixelLMForConditionalGeneration
from pixellm.model.presets import build_image_processor
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


MINI_VOCABULARY = 48


@torch.no_grad()
def mini_model(seed: int = 0, text_config: PreTrainedConfig | None = None) -> PixelLMForConditionalGeneration:
    """As small as a model with everything in it can be (four image tokens, groups of four), and as fast; it opens groups now and then."""
    torch.manual_seed(seed)
    model = PixelLMForConditionalGeneration(PixelLMConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=32,
                                       patch_size=8, projection_dim=16),
        text_config=text_config or LlamaConfig(
            vocab_size=MINI_VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=False, pad_token_id=0),
        image_token_id=MINI_VOCABULARY, codebook_token_ids=[MINI_VOCABULARY + 1 + index for index in range(4)], num_tokens_per_scale=2,
        vision_feature_layers=[-1, -2], image_tokens_per_side=2, decoder_hidden_size=16, decoder_num_heads=2, decoder_mlp_size=32,
        mask_channels=4)).eval()
    model.codebook.output_rows[0].copy_(1.5 * model.language_model.get_output_embeddings().weight[7])
    return model


def mini_photos(model: PixelLMForConditionalGeneration, num_photos: int) -> list[PhotoInput]:
    """Noise of several shapes, so that some image tokens are hidden."""
    image_processor = build_image_processor(model.config)
    shapes = [(32, 32), (12, 40), (40, 12), (5, 5), (1, 30)]
    return [PhotoInput.from_image(random_photo(*shapes[index % 5], seed=index), image_processor) for index in range(num_photos)]


class WatchedGreedy(Greedy):
    """Greedy, and keeps how far ahead each chosen logit was of the next best."""

    def __init__(self):
        self.leads: list[float] = []

    def choose(self, logits: torch.Tensor) -> int:
        best, second = logits.topk(2).values.tolist()
        self.leads.append(best - second)
        return super().choose(logits)
