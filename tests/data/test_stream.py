"""Row groups read from storage, windows cut to micro-batches, and the thread that reads ahead."""

import itertools
import threading

import pytest

from pixellm.data import spans
from pixellm.data.mixture import RowGroup, Span
from pixellm.data.prefetch import Prefetcher
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.spans import StreamedRow, list_row_groups, read_mixture, read_rows, read_span
from pixellm.data.stream import build_window
from pixellm.errors import ShardError
from tests.data.rows import make_row

NUM_ROWS = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("shards"))
    manifest = write_shards([make_row(index) for index in range(NUM_ROWS)], uri, ShardOptions(shard_size_mb=0.009, row_group_mb=0.004))
    assert len(manifest.shards) > 1
    return uri


def test_spans_of_a_lane_are_the_rows_that_the_mixture_says(folder):
    mixture = read_mixture([(folder, None)], seed=3, num_lanes=2)
    found = []
    for lane, num_rows in ((0, 12), (1, 11)):
        places = list(mixture.rows(lane, 0, num_rows))
        spans = list(dict.fromkeys(span for span, _ in places))
        tables = {number: (read_span(span, 3), span.epoch) for number, span in enumerate(spans)}
        found += read_rows(tables, [(spans.index(span), place) for span, place in places])
    assert sorted(row.key for row in found) == sorted(f"test/train/{index}" for index in range(NUM_ROWS))
    assert all(row.epoch == 0 and row.key.endswith(f"/{row.row['image_id']}") and row.row["regions"] for row in found)


def test_a_later_visit_has_keys_of_its_own(folder):
    group = list_row_groups(folder)[0]
    assert all(key.endswith("#2") for key in read_span(Span(group, 0, 2, 0, group.num_rows), 0)["key"].to_pylist())


def test_an_object_that_cannot_be_read_is_tried_again_and_then_named(folder, monkeypatch):
    pauses, group = [], list_row_groups(folder)[0]
    span = Span(group, 0, 0, 0, group.num_rows)
    opened, whole = spans.open_filesystem, read_span(span, 0)

    def fails_twice(uri):
        if len(pauses) < 2:
            raise OSError("the store is away")
        return opened(uri)

    monkeypatch.setattr(spans, "sleep", pauses.append)
    monkeypatch.setattr(spans, "open_filesystem", fails_twice)
    assert read_span(span, 0).equals(whole) and pauses == [1.0, 2.0]
    monkeypatch.setattr(spans, "open_filesystem", opened)
    lost = Span(RowGroup(f"{folder}/shard-09999.parquet", 0, 4, 100), 0, 0, 0, 4)
    with pytest.raises(ShardError, match=r"cannot read row group 0 of .*shard-09999.parquet in 7 attempts"):
        read_span(lost, 0)


class ByLength:
    def length(self, row):
        return row.row["length"]

    def build(self, rows):
        return [row.row["length"] for row in rows]


def test_rows_of_like_length_are_put_together():
    rows = [StreamedRow({"length": length}, 0, str(length)) for length in (5, 1, 9, 2, 8, 4)]
    built = build_window(ByLength(), rows, rows_per_batch=2, entropy=[1], skip=0)
    assert sorted(built) == [[1, 2], [4, 5], [8, 9]]
    assert build_window(ByLength(), rows, 2, [1], skip=1) == built[1:]
    assert any(build_window(ByLength(), rows, 2, [seed], 0) != built for seed in range(5)), "the micro-batches do not come by length"


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(ShardError, match="no manifest"):
        list_row_groups(str(tmp_path))


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
