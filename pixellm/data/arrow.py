"""What pyarrow has no call for."""

import pyarrow as pa


def binary_value(memory: pa.Buffer) -> pa.LargeBinaryArray:
    """An array of one value, which is `memory` itself: `pa.array` would copy it."""
    ends = pa.array([0, memory.size], pa.int64()).buffers()[1]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, memory])
