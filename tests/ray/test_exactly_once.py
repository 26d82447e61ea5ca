"""Processes of a real Ray killed while they stream: every row of an epoch is consumed once in all, by whichever number of workers."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from pixellm.data.shards import ShardOptions, write_shards
from tests.conftest import ROOT
from tests.data.rows import make_row
from tests.ray.consume_stream import read_record

pytestmark = pytest.mark.ray
NUM_ROWS, NUM_STEPS = 40, 40  # 8 rows a step: eight epochs, whole windows


def start(folder, record, num_workers):
    arguments = [sys.executable, "-m", "tests.ray.consume_stream", folder, str(record), str(num_workers), str(NUM_STEPS)]
    return subprocess.Popen(arguments, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(process):
    """The run and every process of its Ray. It is stopped first: to find them all takes a while."""
    os.kill(process.pid, signal.SIGSTOP)
    descendants = [process.pid]
    for parent in descendants:
        listed = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False).stdout.split()
        descendants += [int(pid) for pid in listed]
    for pid in descendants:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


@pytest.mark.timeout(900)
def test_kills_and_resizes_neither_repeat_nor_lose_a_row(tmp_path):
    folder, record = str(tmp_path / "shards"), tmp_path / "record.jsonl"
    write_shards([make_row(index) for index in range(NUM_ROWS)], folder, ShardOptions(shard_size_mb=0.009, row_group_mb=0.004))
    rng = random.Random(4)
    for num_workers, lines_before_kill in ((2, 2), (4, 4), (1, 6)):
        process = start(folder, record, num_workers)
        while process.poll() is None and len(read_record(record)) < lines_before_kill:
            time.sleep(0.05)
        assert process.poll() is None, "it was to be killed while it runs"
        time.sleep(rng.random() / 5)
        kill(process)
    assert len(read_record(record)) < NUM_STEPS // 2
    assert start(folder, record, 2).wait(timeout=400) == 0

    lines = read_record(record)
    assert lines[-1]["position"]["batches_per_lane"] == NUM_STEPS
    steps = [step for line in lines for step in line["steps"]]
    assert len(steps) == NUM_STEPS and all(len(step) == 8 for step in steps)
    consumed = Counter(key for step in steps for key in step)
    assert set(consumed.values()) == {1}
    for epoch in range(8):
        assert {key for key in consumed if key.startswith(f"{epoch} ")} == {f"{epoch} test/train/{i}" for i in range(NUM_ROWS)}
