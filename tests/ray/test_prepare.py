"""Preparing on a real Ray: the same shards from any number of workers and after a kill, and an end where it is hopeless."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixellm.data.parts import ShardOptions
from pixellm.data.prepare import prepare
from pixellm.data.shards import NOTE_SUFFIX, read_manifest, verify_checksums
from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.shapes import ShapesSource
from pixellm.errors import TooManyRejectedError
from tests.conftest import ROOT
from tests.data.sources.instances_files import annotation, image, write_dataset

pytestmark = pytest.mark.ray
OPTIONS = ShardOptions(shard_size_mb=0.15, row_group_mb=0.05)
SOURCE = ShapesSource(num_scenes=60)


def test_parts_are_built_alone_and_written_together(local_ray, tmp_path: Path) -> None:
    first = prepare(SOURCE, str(tmp_path / "a"), OPTIONS)
    assert first.manifest.num_rows == first.counts.num_rows == 60 and len(first.manifest.shards) >= 4
    assert prepare(SOURCE, str(tmp_path / "b"), OPTIONS).manifest.shards == first.manifest.shards
    assert verify_checksums(str(tmp_path / "a")) == first.manifest
    again = prepare(SOURCE, str(tmp_path / "a"), OPTIONS)
    assert again.manifest == first.manifest and again.num_kept_shards == len(first.manifest.shards) and again.counts.num_rows == 0


def test_a_killed_job_goes_on_with_its_shards_and_doubles_none(local_ray, tmp_path: Path) -> None:
    """A job of its own Ray is killed after its second shard; the rest is written here."""
    source, output = ShapesSource(num_scenes=1500), tmp_path / "killed"
    command = [sys.executable, "-m", "jobs.prepare_data", "source=shapes", "num_scenes=1500", f"output={output}", "shard_size_mb=0.15",
               "row_group_mb=0.05"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while len(list(output.glob(f"shards-*/*{NOTE_SUFFIX}"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # the workers of its Ray find out
    assert not (output / "manifest.json").exists()
    notes = {file: file.stat().st_mtime_ns for file in output.glob(f"shards-*/*{NOTE_SUFFIX}")}
    options = OPTIONS.model_copy()
    resumed = prepare(source, str(output), options)
    assert resumed.num_kept_shards >= len(notes) and {file: file.stat().st_mtime_ns for file in notes} == notes
    assert resumed.manifest.num_rows == 1500 and resumed.num_kept_shards < len(resumed.manifest.shards)
    assert resumed.manifest.shards == prepare(source, str(tmp_path / "whole"), options).manifest.shards
    assert verify_checksums(str(output)) == resumed.manifest


def test_a_hopeless_job_stops_early_and_leaves_the_earlier_shards(local_ray, tmp_path: Path, monkeypatch) -> None:
    keys = write_dataset(tmp_path, [image(number) for number in range(1, 41)], [annotation(number, number) for number in range(1, 41)])
    output, small = str(tmp_path / "out"), ShardOptions(shard_size_mb=0.002, row_group_mb=0.002)
    before = prepare(CocoSource(**keys), output, small).manifest
    for number in range(1, 41):
        (tmp_path / f"images/{number}.jpg").write_bytes(b"x" * (tmp_path / f"images/{number}.jpg").stat().st_size)
    with pytest.raises(TooManyRejectedError, match=r"photos were set aside, above max_rejected_share=0.05: .*photo_format"):
        prepare(CocoSource(**keys, seed=1), output, small)
    assert read_manifest(output) == before == verify_checksums(output)
    assert "photo_format" in (tmp_path / "out/rejected.jsonl").read_text()
