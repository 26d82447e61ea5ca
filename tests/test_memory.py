"""Memory that the process keeps."""

import resource
import sys

import pytest
import torch

from pixellm.memory import keep_freed_memory

NUM_BYTES, NUM_TENSORS = 24 << 20, 8


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_freed_memory_is_used_again():
    def touch() -> int:
        """How many pages were new when some large tensors were filled; all are freed again."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(NUM_BYTES, dtype=torch.uint8) for _ in range(NUM_TENSORS)]
        assert sum(int(tensor[-1]) for tensor in tensors) == NUM_TENSORS
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    touch()  # what was freed before this may still be given back
    touch()
    assert touch() < NUM_BYTES * NUM_TENSORS / resource.getpagesize() / 10
