"""A real store that is away while row groups are read: for a while, and for good."""

import pytest

from pixellm.data import spans
from pixellm.data.mixture import Span
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.spans import FIRST_PAUSE_S, list_row_groups, read_span
from pixellm.errors import ShardError
from tests.data.rows import make_row


@pytest.mark.slow
def test_a_store_that_is_away_is_asked_again_and_its_object_named(s3_outages, monkeypatch):
    uri, pauses = f"{s3_outages.store.uri}/shards", []
    write_shards([make_row(index) for index in range(9)], uri, ShardOptions())
    (group,) = list_row_groups(uri)
    span = Span(group, 0, 0, 0, group.num_rows)
    wanted = read_span(span, 3)
    s3_outages.stop()

    def pause_until_it_is_back(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            s3_outages.start()

    monkeypatch.setattr(spans, "sleep", pause_until_it_is_back)
    assert read_span(span, 3).equals(wanted)
    assert pauses == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S], "it failed twice, with a longer pause after the second time"
    s3_outages.stop()
    pauses.clear()
    monkeypatch.setattr(spans, "sleep", pauses.append)
    monkeypatch.setattr(spans, "READ_ATTEMPTS", 3)
    with pytest.raises(ShardError, match=rf"cannot read row group 0 of {group.uri} in 3 attempts: .*check the store"):
        read_span(span, 3)
    assert pauses == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S]
