"""A real store that is away while row groups are read: for a while, and for good."""

import pytest

from pixellm.data import spans
from pixellm.data.mixture import Span
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.spans import FIRST_PAUSE_S, READ_ATTEMPTS, list_row_groups, read_span
from pixellm.errors import ShardError
from tests.data.rows import make_row
from tests.fixtures_s3 import BUCKET, StoreProcess


def test_a_store_that_is_away_is_asked_again_and_its_object_named(tmp_path, monkeypatch):
    store = StoreProcess(tmp_path)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    pauses = []
    store.start()
    try:
        write_shards([make_row(index) for index in range(9)], f"s3://{BUCKET}/shards", ShardOptions())
        (group,) = list_row_groups(f"s3://{BUCKET}/shards")
        span = Span(group, 0, 0, 0, group.num_rows)
        wanted = read_span(span, 3)
        store.stop()

        def pause_until_it_is_back(seconds):
            pauses.append(seconds)
            if len(pauses) == 2:
                store.start()

        monkeypatch.setattr(spans, "sleep", pause_until_it_is_back)
        assert read_span(span, 3).equals(wanted)
        assert pauses == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S], "it failed twice, with a longer pause after the second time"
    finally:
        store.stop()
    pauses.clear()
    monkeypatch.setattr(spans, "sleep", pauses.append)
    with pytest.raises(ShardError, match=rf"cannot read row group 0 of {group.uri} in {READ_ATTEMPTS} attempts: .*check the store"):
        read_span(span, 3)
    assert pauses == [FIRST_PAUSE_S * 2**attempt for attempt in range(READ_ATTEMPTS - 1)]
