"""What makes the unmodified modules fast on a CPU: products and attention by oneDNN.

torch multiplies float32 matrices with MKL, which runs its slower kernels on CPUs that are not Intel's: 106 GFLOP/s a core against 240 with
oneDNN on a 5th-generation EPYC (1024 x 1024 x 1024), and about twice as much at the engine's shapes. bfloat16 goes to oneDNN by itself.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION_NAME = "pixellm_onednn"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """x (…, I) times weight (O, I) transposed, plus `bias` (O,) and `plus` (…, O). Knows no gradient."""
    if not weight.is_contiguous() and not weight.t().is_contiguous():
        weight = weight.contiguous()  # other strides send oneDNN to its reference code, a thousand times slower
    if x.device.type != "cpu" or x.dtype != torch.float32:
        product = F.linear(x, weight, bias)
        return product if plus is None else product.add_(plus)
    if plus is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x, plus, weight, bias, "add")


def padded_num_rows(num_rows: int) -> int:
    """The next of eight sizes in each octave: 1 to 16, 18, 20, … 32, 36, … At most an eighth is padding.

    oneDNN makes code for each number of rows: 0.4 to 0.7 ms and half a megabyte for each shape of a weight.
    """
    step = 1 << max(0, (num_rows - 1).bit_length() - 4)
    return -(-num_rows // step) * step


class InferenceLinear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def use_inference_linear(model: nn.Module) -> None:
    """Let every `nn.Linear` below `model` multiply by `linear`; parameters and their names stay. The model can no longer be trained."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = InferenceLinear


def head_by_head_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                           scaling: float | None = None, **kwargs) -> tuple[Tensor, None]:
    """An attention function of transformers' interface, without a causal mask: (B, H, T, E) each -> (B, T, H, E).

    Keys and values may have fewer heads. `attention_mask` (B or 1, H or 1, T or 1, T) is added to the scores. Two products and a softmax
    for each head: at 1,025 tokens of width 64 25 ms where torch's fused attention takes 44 (16 heads, one thread), in bfloat16 18 and 48.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    for photo, head in itertools.product(range(query.shape[0]), range(query.shape[1])):
        key_head = head * key.shape[1] // query.shape[1]
        scores = linear(query[photo, head] * scale, key[photo, key_head])
        if attention_mask is not None:
            scores += attention_mask[photo % attention_mask.shape[0], head % attention_mask.shape[1]]
        output[photo, :, head] = linear(scores.softmax(-1), value[photo, key_head].t())
    return output, None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, head_by_head_attention)


def is_attended_by_products(query: Tensor) -> bool:
    """Where two products and a softmax beat torch's fused attention: bfloat16 on a CPU, 0.7 ms instead of 1.5 for 16 slots of 300 rows."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """`F.scaled_dot_product_attention` of (B, H, T, E) and (B, H, K, E) by what is faster; `is_causal` only by the fused one."""
    if not is_attended_by_products(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale)
    scores = torch.matmul(query, key.transpose(-1, -2))
    scores *= query.shape[-1] ** -0.5 if scale is None else scale
    if mask is not None:
        scores += mask
    return torch.matmul(scores.softmax(-1), value)


def use_inference_attention(tower: PreTrainedModel) -> None:
    """Let a vision tower whose attention comes from transformers' interface use `head_by_head_attention`; others stay as they are."""
    if getattr(tower, "_supports_attention_backend", False):
        tower.config._attn_implementation = ATTENTION_NAME
