"""Rows through Ray Data: the planned order, portion after portion."""

import pytest

from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.stream import DataPosition, RowStream, list_row_groups, plan_epoch, read_unit
from tests.data.rows import make_row

pytestmark = pytest.mark.ray
NUM_ROWS = 23


@pytest.mark.parametrize("first_bytes", [1, 1 << 20], ids=["many portions", "one portion"])
def test_rows_come_once_and_as_planned(local_ray, tmp_path, monkeypatch, first_bytes):
    monkeypatch.setattr("pixellm.data.stream.FIRST_BYTES", first_bytes)
    write_shards([make_row(index) for index in range(NUM_ROWS)], str(tmp_path), ShardOptions(shard_size_mb=0.009, row_group_mb=0.004))
    groups = list_row_groups([(str(tmp_path), 1.0)])
    units = [unit for epoch in range(2) for unit in plan_epoch(groups, 5, epoch, rank=1, num_workers=2)]
    planned = [(unit.epoch, key) for unit in units for key in read_unit(unit, 5, set())["key"].to_pylist()]
    assert len(units) >= 6

    rows = iter(RowStream(groups, seed=5, rank=1, num_workers=2))
    found = [(each.epoch, each.key, each.row["image_id"]) for each, _ in zip(rows, planned, strict=False)]
    assert found == [(epoch, key, key.rpartition("/")[2]) for epoch, key in planned]
    rows.close()

    position = DataPosition(0, {0: {key for epoch, key in planned if epoch == 0}})
    rest = iter(RowStream(groups, seed=5, rank=1, num_workers=2, position=position))
    assert next(rest).epoch == 1, "what is consumed does not come again"
    rest.close()
