"""Micro-batches as an Arrow table and back: the memory of large tensors and arrays travels as columns of its own, not through the pickle.

A batch of photos is copied once into the object store and once out of it. As one pickle of torch tensors in a column it took 4.9 ms a
photo of 448 px in float32 (docs/log.md).
"""

import io
import pickle
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pixellm.data.arrow import binary_value

HEAD = "head"
SMALL_BYTES = 16_384  # what is smaller stays in the pickle: a column takes longer than to copy so much


def to_table(values: Sequence[Any]) -> pa.Table:
    """A table of one row: the pickles of `values` without the memory of large arrays and tensors, and a column for each of those."""
    heads: list[tuple[bytes, int]] = []
    buffers: list[pickle.PickleBuffer] = []
    for value in values:
        head, large = io.BytesIO(), _LargeBuffers()
        _TensorPickler(head, protocol=5, buffer_callback=large).dump(value)
        heads.append((head.getvalue(), len(large.found)))
        buffers += large.found
    columns = [binary_value(pa.py_buffer(pickle.dumps(heads))), *(binary_value(pa.py_buffer(buffer.raw())) for buffer in buffers)]
    return pa.table(columns, names=[HEAD, *(f"buffer_{number}" for number in range(len(buffers)))])


def from_table(table: pa.Table) -> Iterator[Any]:
    """What `to_table` was given, each value when it is asked for; tensors own their memory."""
    heads, *rest = (column[0].as_buffer() for column in table.columns)
    buffers = iter(rest)
    for head, num_buffers in pickle.loads(heads):
        yield pickle.loads(head, buffers=islice(buffers, num_buffers))


class _LargeBuffers:
    """Takes large buffers out of a pickle; small ones stay in it."""

    def __init__(self) -> None:
        self.found: list[pickle.PickleBuffer] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        is_small = buffer.raw().nbytes < SMALL_BYTES
        if not is_small:
            self.found.append(buffer)
        return is_small


class _TensorPickler(pickle.Pickler):
    """torch pickles a tensor by copying it; numpy hands out its memory."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        flat = value.detach().contiguous().reshape(-1)
        return _to_tensor, (flat.view(torch.uint8).numpy() if flat.numel() else None, value.dtype, tuple(value.shape))


def _to_tensor(memory: np.ndarray | None, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if memory is None:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(memory.copy()).view(dtype).reshape(shape)  # the object store's memory must not be written to
