"""Which rows a worker reads, and that resuming neither repeats nor loses one."""

import itertools
import threading

import pytest

from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.stream import DataPosition, Prefetcher, RowGroup, RowStream, count_rows_per_epoch, list_row_groups, plan_epoch, read_unit
from pixellm.errors import ShardError
from tests.data.rows import make_row

NUM_ROWS = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("shards"))
    manifest = write_shards([make_row(index) for index in range(NUM_ROWS)], uri, ShardOptions(shard_size_mb=0.009, row_group_mb=0.004))
    assert len(manifest.shards) > 1
    return uri


def keys_of_epoch(groups, epoch, num_workers, consumed=frozenset(), seed=0):
    """Of each worker, in its order."""
    plans = [plan_epoch(groups, seed, epoch, rank, num_workers) for rank in range(num_workers)]
    return [[key for unit in plan for key in read_unit(unit, seed, set(consumed))["key"].to_pylist()] for plan in plans]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("are_many", [False, True])
def test_an_epoch_holds_every_row_once(folder, num_workers, are_many, monkeypatch):
    monkeypatch.setattr("pixellm.data.stream.WHOLE_GROUPS_PER_WORKER", 1 if are_many else 1000)
    groups = list_row_groups([(folder, 1.0)])
    assert len(groups) >= 3
    found = keys_of_epoch(groups, 0, num_workers)
    assert sorted(itertools.chain(*found)) == sorted(f"test/train/{index}" for index in range(NUM_ROWS))
    assert all(found)


def test_order_follows_from_seed_and_epoch_alone(folder):
    groups = list_row_groups([(folder, 1.0)])
    first = keys_of_epoch(groups, 0, 2)
    assert keys_of_epoch(groups, 0, 2) == first
    assert keys_of_epoch(groups, 1, 2) != first and keys_of_epoch(groups, 0, 2, seed=1) != first


def test_another_number_of_workers_takes_exactly_the_rest(folder):
    groups = list_row_groups([(folder, 1.0)])
    done = [key for keys in keys_of_epoch(groups, 0, 2) for key in keys[:4]]
    rest = list(itertools.chain(*keys_of_epoch(groups, 0, 3, consumed=done)))
    assert len(rest) == len(set(rest)) == NUM_ROWS - len(done) and not set(rest) & set(done)


def test_weights_repeat_and_thin_out(folder):
    groups = list_row_groups([(folder, 2.0)])
    twice = keys_of_epoch(groups, 0, 1)[0]
    assert len(set(twice)) == len(twice) == count_rows_per_epoch(groups) == 2 * NUM_ROWS
    assert sorted(key.removesuffix("#1") for key in twice if key.endswith("#1")) == sorted(key for key in twice if "#" not in key)
    thin = list_row_groups([(folder, 0.5)])
    half = list(itertools.chain(*keys_of_epoch(thin, 0, 2)))
    assert len(set(half)) == len(half) == count_rows_per_epoch(thin) and abs(len(half) - NUM_ROWS / 2) <= len(thin) / 2
    assert sorted(half) == sorted(keys_of_epoch(thin, 0, 1)[0]), "the share must not depend on the number of workers"


def test_position_forgets_finished_epochs_and_survives_json():
    position = DataPosition()
    position.add([(0, "a"), (1, "a")], rows_per_epoch=2)
    assert position.first_epoch == 0
    position.add([(0, "b"), (2, "b")], rows_per_epoch=2)
    assert position == DataPosition(1, {1: {"a"}, 2: {"b"}})
    assert DataPosition.from_json(position.to_json()) == position


def test_fewer_rows_than_workers_is_an_error():
    with pytest.raises(ShardError, match="found 1 rows for 2 workers"):
        RowStream([RowGroup("x", 0, 1, 10)], seed=0, rank=0, num_workers=2)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ShardError, match="no manifest"):
        list_row_groups([(str(tmp_path), 1.0)])


def test_prefetcher_keeps_the_order_and_raises_in_place():
    def items():
        yield from range(5)
        raise ValueError("row 5")

    prefetcher, found = Prefetcher(items(), depth=2), []
    with pytest.raises(ValueError, match="row 5"):
        for item in prefetcher:
            found.append(item)
    assert found == list(range(5))
    assert list(Prefetcher(range(3), depth=1)) == [0, 1, 2]


def test_closed_prefetcher_stops_reading():
    prefetcher = Prefetcher(itertools.count(), depth=2)
    assert next(iter(prefetcher)) == 0
    prefetcher.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch" and thread is prefetcher._thread]
