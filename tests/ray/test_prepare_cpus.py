"""Preparing with one CPU and with two gives the same shards."""

import shutil
import tempfile

import pytest
import ray

from pixellm.data.parts import ShardOptions
from pixellm.data.prepare import prepare
from pixellm.data.sources.shapes import ShapesSource

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_shards_do_not_depend_on_the_number_of_cpus(tmp_path):
    """`local_ray` has four: each count here is a Ray of its own."""
    found = {}
    for num_cpus in (1, 2):
        folder = tempfile.mkdtemp(prefix="r")
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
                 _temp_dir=folder)
        try:
            done = prepare(ShapesSource(num_scenes=40), str(tmp_path / str(num_cpus)), ShardOptions(shard_size_mb=0.1, row_group_mb=0.05))
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
        found[num_cpus] = done.manifest
    assert found[1] == found[2] and len(found[1].shards) >= 2 and found[1].num_rows == 40
    checksums = [[(tmp_path / str(num_cpus) / shard.name).read_bytes() for shard in found[1].shards] for num_cpus in (1, 2)]
    assert checksums[0] == checksums[1]
