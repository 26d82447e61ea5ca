"""The documents' commands run as they are printed: in a folder of the reader's own, with no Ray, and on a head that runs."""

import json
import tempfile

import pytest

from tests.docs.blocks import read_all
from tests.ray.namespace import run_apart

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("mode", ["auto", "head"])
def test_every_block_that_can_run_ends_well(mode, record_result):
    with tempfile.TemporaryDirectory(prefix="d") as folder:  # short: Ray's sockets lie below it
        said = run_apart("tests.docs.run_blocks", mode, folder, env={})
    ended = [json.loads(line) for line in said.splitlines() if line.startswith('{"place"')]
    blocks = read_all()
    expected = [block.place for block in blocks if block.runs_in(mode)]
    assert [each["place"] for each in ended] == expected
    failed = [each for each in ended if each["status"]]
    assert not failed, "\n".join(f"{each['place']}: {each['output']}" for each in failed)
    record_result(f"documents_{mode}", {"num_run": len(ended), "num_not_run": sum(block.kind is None for block in blocks),
                                        "seconds": {each["place"]: each["seconds"] for each in ended}})
