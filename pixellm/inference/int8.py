"""A language model's weights in eight bits: half of bfloat16's memory, a quarter of float32's, for a small loss that is measured.

Weight-only: a row of a weight has one scale, numbers are multiplied in the dtype of the activations. It saves memory, not time: on a CPU
without integer matrix units a product takes 1.3 times as long at 16 rows and 12 times at one (docs/log.md).
"""

import torch
from torch import Tensor, nn

from pixellm.inference.cpu import linear
from pixellm.model import PixelLMForConditionalGeneration

LEVELS = 127


class Int8Linear(nn.Module):
    """`source` with its weight (O, I) rounded to int8, one scale (O,) for each row: the largest number of a row becomes 127."""

    def __init__(self, source: nn.Linear):
        super().__init__()
        largest = source.weight.detach().float().abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", (source.weight.detach() * (LEVELS / largest)).round().to(torch.int8))
        self.register_buffer("scale", (largest[:, 0] / LEVELS).to(source.weight.dtype))
        self.bias = source.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (…, I) -> (…, O), in the dtype of `x`."""
        product = linear(x, self.weight.to(x.dtype)) * self.scale
        return product if self.bias is None else product + self.bias


@torch.no_grad()
def use_int8_weights(model: PixelLMForConditionalGeneration) -> None:
    """Replaces every `nn.Linear` of the language model's layers, in place. Its tables, the vision tower and the mask decoder stay as they
    are: together they are a few percent of a large model, and what masks and tokens are made from. The model can no longer be trained."""
    for module in list(model.language_model.base_model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
