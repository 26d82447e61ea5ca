"""The stream on a real Ray: what the mixture says, in its order, from any position, and within its memory."""

import time

import pytest

from pixellm.data.mixture import BATCHES_PER_WINDOW
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.stream import BatchStream, build_window, read_mixture, read_rows, read_span
from tests.data.rows import make_row

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


def test_memory_stays_bounded_however_slow_the_consumer_is(local_ray, mixture):
    """A window of both lanes takes 1.6 MB, so 8 MB hold five. With a bound of a gigabyte the same consumer has more before it."""

    def most_windows_waiting(memory_mb):
        stream = BatchStream(mixture, [0, 1], mixture.start(ROWS_PER_BATCH), KeepKeys(200_000), memory_mb=memory_mb)
        made, collate = [], stream._collate

        def count(windows, *rest):
            made.append(len(windows) // 2)  # of both lanes
            return collate(windows, *rest)

        stream._collate = count
        batches, most = iter(stream), 0
        for step in range(BATCHES_PER_WINDOW * 12):
            for _ in stream.lanes:
                next(batches)
            time.sleep(0.05)  # slower than the stream is: it gets as far ahead as it may
            most = max(most, sum(made) - step // BATCHES_PER_WINDOW)
        batches.close()
        return most

    assert most_windows_waiting(8) * 1.6 <= 8 < most_windows_waiting(1000) * 1.6


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
