"""A Ray of its own for tests, that no other cluster on the machine can be mistaken for."""

import shutil
import tempfile
from collections.abc import Iterator

import pytest

NUM_CPUS = 4  # logical: tests wait more than they compute


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A fresh local Ray for the tests of one module, ended after them. The folder's name is short: socket paths end at 107 bytes."""
    import ray

    folder = tempfile.mkdtemp(prefix="r")
    ray.init(address="local", num_cpus=NUM_CPUS, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000,
             _temp_dir=folder)
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
