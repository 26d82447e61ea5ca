"""A process group of one for DeepSpeed."""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package")
def process_group(tmp_path_factory) -> Iterator[None]:
    """gloo with one member, joined through a file: no port is needed."""
    before = dict(os.environ)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
    store = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)
