"""Every command block of the documents says whether a test runs it, or why none can."""

import pytest

from tests.docs.blocks import KINDS, read_all


@pytest.mark.parametrize("block", read_all(), ids=lambda block: block.place)
def test_a_block_is_marked(block):
    assert block.kind in KINDS or (block.reason or "").count(" ") > 2, (
        f"{block.place} has no mark: write <!-- run: {' | '.join(KINDS)} --> or <!-- not run: REASON --> above it")
