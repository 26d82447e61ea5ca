"""Traces of chosen steps by torch's profiler, written beside the run."""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pixellm.errors import PixelLMError
from pixellm.storage import join_uri, write_bytes
from pixellm.train.console import say

PROFILE_FOLDER = "profile"


@contextmanager
def traced(step: int, steps: Collection[int], run_uri: str) -> Iterator[None]:
    """Traces what runs inside if `step` (the first is 1) is one of `steps`: `profile/step_N.json.gz`, for Perfetto or Chrome's tracing."""
    if step not in steps:
        yield
        return
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        yield
    with tempfile.TemporaryDirectory(prefix="pixellm-profile-") as folder:
        file = Path(folder) / f"step_{step:08d}.json.gz"
        profiler.export_chrome_trace(str(file))
        uri = join_uri(run_uri, PROFILE_FOLDER, file.name)
        try:
            write_bytes(uri, file.read_bytes())
        except PixelLMError as error:
            say(f"trace of step {step} was not written: {error}")
        else:
            say(f"trace of step {step}: {uri}")
