"""Micro-batches as Arrow tables and back: the memory of tensors and arrays travels as columns of its own, not through the pickle.

A batch of photos is copied once into the object store and once out of it. As one pickle of torch tensors in a column it took 4.9 ms a
photo of 448 px in float32 (docs/log.md).
"""

import io
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pixellm.data.arrow import binary_value

HEAD = "head"


def to_table(value: Any) -> pa.Table:
    """A table of one row: the pickle of `value` without the memory of its arrays and tensors, and a column for each of those."""
    buffers: list[pickle.PickleBuffer] = []
    head = io.BytesIO()
    _TensorPickler(head, protocol=5, buffer_callback=buffers.append).dump(value)
    columns = [binary_value(pa.py_buffer(head.getvalue())), *(binary_value(pa.py_buffer(buffer.raw())) for buffer in buffers)]
    return pa.table(columns, names=[HEAD, *(f"buffer_{number}" for number in range(len(buffers)))])


def from_table(table: pa.Table) -> Any:
    """What `to_table` was given; tensors own their memory."""
    head, *buffers = (column[0].as_buffer() for column in table.columns)
    return pickle.loads(head, buffers=buffers)


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
