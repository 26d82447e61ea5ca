"""A real S3 store that dies in the middle of an upload."""

import time
from dataclasses import replace

import torch

from pixellm.storage import list_files
from pixellm.train.checkpoint import MANIFEST, PARAMETERS, checkpoint_name, find_latest_checkpoint, read_checkpoint
from pixellm.train.writer import CheckpointWriter
from tests.train.examples import largest_difference
from tests.train.test_checkpoint import make_checkpoint

LARGE = 24 << 20  # float32 values: six parts


def test_a_store_that_dies_during_an_upload(s3_outages, tmp_path, capsys):
    uri = f"{s3_outages.store.uri}/run"
    first, second = make_checkpoint(1), make_checkpoint(2)
    large = {"language_model.large": torch.arange(LARGE, dtype=torch.float32)}
    second = replace(second, state=replace(second.state, parameters=second.state.parameters | large))
    writer = CheckpointWriter(uri, keep_last=2, keep_best=0, patience_s=240, before=lambda: None)
    writer.submit(first)
    writer.finish()

    writer.submit(second)
    while writer.is_busy and not list_files(f"{uri}/{checkpoint_name(2)}"):
        time.sleep(0.02)
    assert writer.is_busy, "small files are there, the large one is on its way"
    s3_outages.kill()
    time.sleep(3)
    assert writer.is_busy
    s3_outages.start()
    assert find_latest_checkpoint(uri).endswith(checkpoint_name(1)) or not writer.is_busy, "half of a checkpoint counts as none"
    writer.finish()
    assert "trying again" in capsys.readouterr().out

    names = {name.rpartition("/")[2] for name in list_files(f"{uri}/{checkpoint_name(2)}")}
    assert {MANIFEST, PARAMETERS} < names
    read = read_checkpoint(find_latest_checkpoint(uri), tmp_path / "read")
    assert read.progress.step == 2 and largest_difference(read.state.parameters, second.state.parameters) == 0
