"""One micro-batch through the model to its losses: what training steps and the estimate of their memory have in common. No Ray here."""

from collections.abc import Callable

from torch import Tensor

from pixellm.model.losses import LossSums, compute_losses, text_loss
from pixellm.model.modeling_pixellm import PixelLMOutput
from pixellm.model.processing_pixellm import resize_to_photos
from pixellm.train.config import LossWeights, TrainConfig

MODEL_INPUTS = ("pixel_values", "resized_sizes_hw", "photo_index", "input_ids", "attention_mask")


def forward_losses(forward: Callable[..., PixelLMOutput], tensors: dict[str, Tensor], config: TrainConfig) -> LossSums:
    """The model's pass over one micro-batch and its losses, masks at the resolution that `config` says; none where they weigh nothing."""
    output = forward(**{name: tensors[name] for name in MODEL_INPUTS}, decode_masks=config.trains_masks)
    if not config.trains_masks:
        text, num_answer_tokens = text_loss(output.logits, tensors["labels"])
        return LossSums(text, text.new_zeros(0), text.new_zeros(0), num_answer_tokens, num_answer_tokens.new_zeros(0))
    mask_logits = output.mask_logits
    if config.mask_loss_resolution == "photo":
        photo = tensors["photo_index"][output.target_conversation]
        mask_logits = resize_to_photos(mask_logits, tensors["pixel_values"].shape[-1], tensors["resized_sizes_hw"][photo],
                                       tensors["photo_sizes_hw"][photo])
    return compute_losses(output.logits, tensors["labels"], mask_logits, tensors["target_masks"], tensors["target_valid"],
                          output.target_conversation, config.refinement_alpha)


def weighted_loss(losses: LossSums, weights: LossWeights, num_answer_tokens: int, num_masks: int) -> Tensor:
    """The scalar that is trained: sums of a micro-batch, divided by the tokens and masks of the whole global batch."""
    return (weights.text * losses.text.sum() / num_answer_tokens
            + (weights.bce * losses.bce.sum() + weights.dice * losses.dice.sum()) / num_masks)
