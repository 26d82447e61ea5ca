"""PixelLM's losses as pure functions. They return sums and counts: the training step divides by the counts of its whole global batch.

Letters: Q conversations, T tokens, V vocabulary, K targets, M side of a mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LossSums:
    """Sums with gradient: `text` (Q,) over each conversation's answer tokens, `bce` and `dice` (K,) over each mask's pixels.

    They are divided by `num_answer_tokens` (Q,) and by the number of masks, of a whole global batch. `target_conversation` (K,).
    """

    text: Tensor
    bce: Tensor
    dice: Tensor
    num_answer_tokens: Tensor
    target_conversation: Tensor


def text_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token cross entropy, summed in float32. logits (Q, T, V), labels (Q, T) with -100 where nothing is trained.

    Returns the sums (Q,) and the numbers (Q,) of trained tokens of each conversation.
    """
    shifted = labels[:, 1:]
    trained = shifted != -100
    tokens = F.cross_entropy(logits[:, :-1][trained].float(), shifted[trained], reduction="none")
    return tokens.new_zeros(len(labels)).index_add(0, trained.nonzero()[:, 0], tokens), trained.sum(1)


def overlap_weight(mask_logits: Tensor, target_conversation: Tensor, alpha: float) -> Tensor:
    """A of the paper's target refinement loss, (K, M, M): alpha where two or more predicted masks of one question cover a pixel, else 1."""
    covered = (mask_logits.detach() > 0).to(mask_logits.dtype)
    same_question = (target_conversation[:, None] == target_conversation[None, :]).to(covered.dtype)
    num_covering = torch.einsum("kj,jhw->khw", same_question, covered)
    return torch.where(num_covering >= 2, alpha, 1.0).to(mask_logits.dtype)


def refined_bce(mask_logits: Tensor, target_masks: Tensor, target_valid: Tensor, target_conversation: Tensor, alpha: float) -> Tensor:
    """Target refinement loss: per mask the mean over valid pixels of A * BCE (paper, section 3.3), shape (K,).

    mask_logits (K, M, M); target_masks (K, M, M) in [0, 1]; target_valid (K, M, M), the valid share of each cell;
    target_conversation (K,): which question a target belongs to.
    """
    pixel = F.binary_cross_entropy_with_logits(mask_logits, target_masks, reduction="none")
    weighted = pixel * overlap_weight(mask_logits, target_conversation, alpha) * target_valid
    return weighted.sum((1, 2)) / target_valid.sum((1, 2)).clamp(min=1.0)


def dice(mask_logits: Tensor, target_masks: Tensor, target_valid: Tensor, scale: float = 1000.0, eps: float = 1e-6) -> Tensor:
    """Dice loss per mask, (K,), over valid pixels, with the sums divided by `scale` as in the released code."""
    probs = mask_logits.sigmoid() * target_valid
    targets = target_masks * target_valid
    intersection = (probs * targets).sum((1, 2)) / scale
    return 1 - (2 * intersection + eps) / (probs.sum((1, 2)) / scale + targets.sum((1, 2)) / scale + eps)


def compute_losses(logits: Tensor, labels: Tensor, mask_logits: Tensor, target_masks: Tensor, target_valid: Tensor,
                   target_conversation: Tensor, refinement_alpha: float = 2.0) -> LossSums:
    """All losses of one micro-batch. Shapes as above; K may be 0: the sum of the mask losses is then 0, still attached to the graph."""
    text, num_answer_tokens = text_loss(logits, labels)
    mask_logits = mask_logits.float()
    bce = refined_bce(mask_logits, target_masks, target_valid, target_conversation, refinement_alpha)
    return LossSums(text, bce, dice(mask_logits, target_masks, target_valid), num_answer_tokens, target_conversation)
