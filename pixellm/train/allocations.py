"""Counts what a piece of torch code allocates, without doing its work: floats are shapes on `meta`, integers are real.

So the model's own forward and backward pass runs as it is, index by index, in the memory of a laptop, and every tensor that a GPU would
hold is counted from the operation that makes it to the moment when nothing holds it any more.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROUNDING_BYTES = 512  # of an allocation on a GPU
OTHER = "logits and losses"
WAY_BACK = "way back"
aten = torch.ops.aten


class AllocationCounter(TorchDispatchMode):
    """Live bytes by the part that made them. `peak` is the largest sum without gradients, `peak_with_gradients` the largest with them."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.part = OTHER
        self.live: Counter[str] = Counter()
        self.num_gradient_bytes = 0
        self.peak: Counter[str] = Counter()
        self.peak_with_gradients = 0
        self._storages: dict[int, tuple[weakref.ref, int, str]] = {}
        self._kept = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]  # there before: not counted
        for storage in self._kept:
            self._storages[id(storage)] = (weakref.ref(storage), 0, OTHER)
        self._handles = [parameter.register_post_accumulate_grad_hook(self._note_gradient)
                         for parameter in model.parameters() if parameter.requires_grad]

    def close(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = _run(function, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._storages and self._storages[key][0]() is storage:
            return
        num_bytes = -(-storage.nbytes() // ROUNDING_BYTES) * ROUNDING_BYTES
        self._storages[key] = (weakref.ref(storage, lambda _: self._forget(key)), num_bytes, self.part)
        self.live[self.part] += num_bytes
        self._look()

    def _look(self) -> None:
        total = self.live.total()
        if total > self.peak.total():
            self.peak = self.live.copy()
        self.peak_with_gradients = max(self.peak_with_gradients, total + self.num_gradient_bytes)

    def _forget(self, key: int) -> None:
        _, num_bytes, part = self._storages.pop(key)
        self.live[part] -= num_bytes

    def _note_gradient(self, parameter: Tensor) -> None:
        """A gradient that is ready is kept apart from the activations."""
        assert parameter.grad is not None
        key = id(parameter.grad.untyped_storage())
        reference, num_bytes, part = self._storages[key]
        self.live[part] -= num_bytes
        self._storages[key] = (reference, 0, part)
        self.num_gradient_bytes += num_bytes


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Attention as a GPU's kernels hold it: never the scores, but a mask in the width of the numbers, kept for the way back."""
    return _AttentionMemory.apply(query, key, value, attn_mask)


class _AttentionMemory(torch.autograd.Function):
    """Allocates what the kernel does, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output = torch.empty_like(query)
        row_sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        bias = None if mask is None or mask.dtype != torch.bool else torch.empty(mask.shape, dtype=query.dtype, device=query.device)
        ctx.save_for_backward(query, key, value, output, row_sums, *([] if bias is None else [bias]))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def count_step(model: nn.Module, step: Callable[[], Tensor], attention: Literal["fused", "plain"]) -> AllocationCounter:
    """Runs `step`, which returns a loss, and the way back from it. `model` has its floats on `meta`, and its gradients afterwards.

    Parts are the model's own: what is made inside of `vision_tower`, `projector`, the language model's layers or `mask_head` is theirs.
    """
    counter = AllocationCounter(model)
    modules = {"vision_tower": model.vision_tower, "projector": model.projector, "language_model": model.language_model.base_model,
               "mask_head": model.mask_head}
    handles = [handle for part, module in modules.items() for handle in _mark_part(counter, module, part)]
    try:
        with counter, _attention(attention):
            loss = step()
            counter.part = WAY_BACK
            loss.backward()
    finally:
        counter.close()
        for handle in handles:
            handle.remove()
    return counter


def _mark_part(counter: AllocationCounter, module: nn.Module, part: str) -> Iterator[Any]:
    def enter(*_: Any) -> None:
        counter.part = part

    def leave(*_: Any) -> None:
        counter.part = OTHER

    yield module.register_forward_pre_hook(enter)
    yield module.register_forward_hook(leave)


@contextmanager
def _attention(kind: Literal["fused", "plain"]) -> Iterator[None]:
    """Also where layers are computed again on the way back, which a mode of torch's would miss."""
    original = F.scaled_dot_product_attention
    if kind == "fused":
        F.scaled_dot_product_attention = _fused_attention
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        F.scaled_dot_product_attention = original


def _run(function: Any, args: tuple, kwargs: dict) -> Any:
    """One operation. Integers stay real wherever they are asked to be; beside a float on `meta` they are shapes, but as indices."""
    if function is aten.masked_scatter_backward.default:
        return args[0].new_empty(args[2])
    is_meta = any(isinstance(each, Tensor) and each.is_meta for each in tree_leaves((args, kwargs)))
    if torch.device(kwargs.get("device") or "cpu").type == "meta" and not is_meta:
        dtype = kwargs.get("dtype") or (args[0].dtype if args and isinstance(args[0], Tensor) else None)
        real = function(*args, **{**kwargs, "device": torch.device("cpu")}) if dtype is None or not dtype.is_floating_point else None
        if real is not None and not real.is_floating_point():
            return real
        return function(*args, **kwargs)
    if not is_meta:
        return function(*args, **kwargs)
    if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
        args = (args[0], _without_bools(args[1]), *args[2:])
    args, kwargs = tree_map(lambda each: each.to("meta") if isinstance(each, Tensor) and not each.is_meta else each, (args, kwargs))
    return function(*args, **kwargs)


def _without_bools(indices: list[Tensor | None]) -> list[Tensor | None]:
    """A mask becomes the places where it holds, one index for each of its dimensions."""
    found: list[Tensor | None] = []
    for index in indices:
        found += [index] if index is None or index.dtype != torch.bool else list(index.nonzero().unbind(1))
    return found
