"""Memory that the process keeps."""

import subprocess
import sys

import pytest

# Fills eight arrays of 4 MB, frees them, and does it again; prints how many pages were new the last time.
SCRIPT = """
import resource
import numpy as np
from pixellm.memory import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(4 << 20, dtype=np.uint8) for _ in range(8)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_freed_memory_is_used_again():
    new_pages = int(subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout)
    assert new_pages < 400  # 0; glibc alone gives them back and gets 4,072
