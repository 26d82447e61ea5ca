"""The stream on a real Ray: what the mixture says, in its order, from any position, and within its memory."""

import gc
import os
import time

import pytest
import ray
from ray._private.internal_api import node_stats

from pixellm.data.mixture import BATCHES_PER_WINDOW
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.spans import read_mixture, read_rows, read_span
from pixellm.data.stream import PORTIONS_AHEAD, BatchStream, build_window
from tests.data.rows import make_photo, make_row

pytestmark = pytest.mark.ray
SEED, NUM_ROWS, ROWS_PER_BATCH = 5, 30, 2


class KeepKeys:
    """A builder that keeps the keys, and as much beside them as a picture takes."""

    def __init__(self, num_bytes=0):
        self.num_bytes = num_bytes

    def length(self, row):
        return len(row.row["image"]) % 7

    def build(self, rows):
        return [(row.epoch, row.key) for row in rows], bytes(self.num_bytes)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    uris = [str(tmp_path_factory.mktemp(name)) for name in ("one", "two")]
    write_shards([make_row(index) for index in range(NUM_ROWS)], uris[0], ShardOptions(shard_size_mb=0.009, row_group_mb=0.004))
    write_shards([make_row(index, source="other") for index in range(8)], uris[1], ShardOptions())
    return read_mixture([(uris[0], 2.0), (uris[1], 1.0)], SEED, num_lanes=4)


def expected(mixture, lanes, num_windows):
    """Micro-batches one by one, without Ray."""
    found = []
    for number in range(num_windows):
        built = []
        for lane in lanes:
            size = BATCHES_PER_WINDOW * ROWS_PER_BATCH
            places = list(mixture.rows(lane, number * size, (number + 1) * size))
            spans = list(dict.fromkeys(span for span, _ in places))
            rows = read_rows({i: (read_span(span, SEED), span.epoch) for i, span in enumerate(spans)},
                             [(spans.index(span), place) for span, place in places])
            built.append([keys for keys, _ in build_window(KeepKeys(), rows, ROWS_PER_BATCH, [SEED, lane, number], 0)])
        found += [keys for step in zip(*built, strict=True) for keys in step]
    return found


def test_micro_batches_are_those_of_the_mixture_from_any_position(local_ray, mixture):
    lanes, start = [2, 3], mixture.start(ROWS_PER_BATCH)
    wanted = expected(mixture, lanes, 6)
    stream = iter(BatchStream(mixture, lanes, start, KeepKeys()))
    assert [next(stream)[0] for _ in wanted] == wanted
    stream.close()
    later = iter(BatchStream(mixture, lanes, type(start)(start.num_lanes, ROWS_PER_BATCH, start.mixture, 7), KeepKeys()))
    assert [next(later)[0] for _ in range(10)] == wanted[14:24]
    later.close()


def test_two_portions_are_made_while_one_is_consumed(local_ray, mixture):
    stream, planned = BatchStream(mixture, [0], mixture.start(ROWS_PER_BATCH), KeepKeys()), []
    plan = stream._plan
    stream._plan = lambda first, count: planned.append(first) or plan(first, count)
    batches = iter(stream)
    next(batches)
    deadline = time.monotonic() + 60
    while len(planned) < 1 + PORTIONS_AHEAD:
        assert time.monotonic() < deadline, planned
        time.sleep(0.05)
    batches.close()


def stored_bytes():
    """What lies in this node's object store."""
    (node,) = ray.nodes()
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return stats.store_stats.object_store_bytes_used


def test_memory_stays_bounded_however_slow_the_consumer_is(local_ray, tmp_path):
    """Micro-batches of 200 kB, row groups of 1 MB: of 12 MB the store never holds more; of 60 MB the same consumer has more before it."""
    rows = [make_row(index, image=make_photo() + os.urandom(20_000)) for index in range(400)]
    write_shards(rows, str(tmp_path), ShardOptions(row_group_mb=1))
    mixture = read_mixture([(str(tmp_path), None)], SEED, num_lanes=2)

    def most_stored(memory_mb):
        before, most = stored_bytes(), 0
        batches = iter(BatchStream(mixture, [0, 1], mixture.start(ROWS_PER_BATCH), KeepKeys(200_000), memory_mb=memory_mb))
        for number in range(BATCHES_PER_WINDOW * 10 * 2):
            next(batches)
            time.sleep(0.02)  # slower than the stream is: it gets as far ahead as it may
            if number % BATCHES_PER_WINDOW == 0:
                gc.collect()  # an execution of Ray Data is a cycle of objects, and keeps its blocks until it is collected
                most = max(most, stored_bytes() - before)
        batches.close()
        return most

    assert most_stored(12) <= 12e6 < most_stored(60) <= 60e6


def test_row_groups_are_read_once_however_seldom_a_set_comes(local_ray, tmp_path):
    """One row in 21 is of the small set: most portions of one window have none, and its row group has to stay for the next."""
    for name, num_rows in (("large", 200), ("small", 10)):
        write_shards([make_row(index, source=name) for index in range(num_rows)], str(tmp_path / name), ShardOptions())
    mixture = read_mixture([(str(tmp_path / "large"), 20.0), (str(tmp_path / "small"), 1.0)], SEED, num_lanes=1)
    stream = BatchStream(mixture, [0], mixture.start(ROWS_PER_BATCH), KeepKeys(1000), memory_mb=0.001)
    taken, read = [], stream._read
    stream._read = lambda spans: taken.extend(spans) or read(spans)
    batches = iter(stream)
    keys = [key for _ in range(60) for key in next(batches)[0]]
    batches.close()
    assert sum(key.startswith("small/") for _, key in keys) >= 5
    assert len(taken) == len(set(taken)) == 2
    assert len(stream._spans) == 2, "neither is used up yet"
