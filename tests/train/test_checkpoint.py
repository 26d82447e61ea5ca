"""Files of a checkpoint: all that goes in comes out, and what is not whole is not taken."""

import json
import random

import numpy as np
import pytest
import torch

from pixellm.data.mixture import DataPosition
from pixellm.errors import StorageError
from pixellm.train.checkpoint import (
    MANIFEST,
    PARAMETERS,
    RunProgress,
    TrainingCheckpoint,
    checkpoint_name,
    checkpoint_step,
    find_latest_checkpoint,
    get_random_state,
    read_checkpoint,
    set_random_state,
    upload_checkpoint,
    write_checkpoint,
)
from pixellm.train.deepspeed import TrainedState
from tests.train.examples import largest_difference, make_config


def make_checkpoint(step: int = 7) -> TrainingCheckpoint:
    values = {"codebook.input_rows": torch.randn(4, 3), "mask_head.gamma": torch.randn(2)}
    moments = {"exp_avg": {name: torch.randn_like(value) for name, value in values.items()},
               "exp_avg_sq": {name: torch.rand_like(value) for name, value in values.items()}}
    return TrainingCheckpoint(
        RunProgress(step=step, num_updates=step, epoch=2, num_workers=2, git_revision="abc"), TrainedState(values, moments, step),
        DataPosition(4, 6, "0123456789abcdef", 12), [get_random_state(), get_random_state()], make_config())


def write(uri, checkpoint, folder):
    write_checkpoint(folder, checkpoint)
    upload_checkpoint(folder, uri)
    return uri


def test_what_is_written_is_read(tmp_path):
    written = make_checkpoint()
    uri = write(str(tmp_path / "run" / checkpoint_name(7)), written, tmp_path / "local")
    read = read_checkpoint(uri, tmp_path / "fetched")
    assert (read.progress, read.position, read.config) == (written.progress, written.position, written.config)
    assert largest_difference(read.state.parameters, written.state.parameters) == 0
    for moment in ("exp_avg", "exp_avg_sq"):
        assert largest_difference(read.state.moments[moment], written.state.moments[moment]) == 0
    assert len(read.random_states) == 2 and checkpoint_step(uri) == 7
    assert {file.suffix for file in (tmp_path / "run" / checkpoint_name(7)).iterdir()} == {".json", ".yaml", ".safetensors"}


def test_latest_is_the_highest_step_that_was_finished(tmp_path):
    run = tmp_path / "run"
    assert find_latest_checkpoint(str(run)) is None
    for step in (9, 100):
        write(str(run / checkpoint_name(step)), make_checkpoint(step), tmp_path / "local")
    assert find_latest_checkpoint(str(run)) == str(run / checkpoint_name(100))
    (run / checkpoint_name(100) / MANIFEST).unlink()
    assert find_latest_checkpoint(str(run)) == str(run / checkpoint_name(9))
    with pytest.raises(StorageError, match="not a finished checkpoint"):
        read_checkpoint(str(run / checkpoint_name(100)), tmp_path / "fetched")


def test_a_changed_file_is_refused(tmp_path):
    uri = write(str(tmp_path / checkpoint_name(7)), make_checkpoint(), tmp_path / "local")
    file = tmp_path / checkpoint_name(7) / PARAMETERS
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StorageError, match="checksum"):
        read_checkpoint(uri, tmp_path / "fetched")
    assert PARAMETERS in json.loads((tmp_path / checkpoint_name(7) / MANIFEST).read_text())["files"]


@pytest.mark.parametrize("data", [b"", b"404: Not Found", b"<html><body>log in</body></html>", b"[]", b'{"files": ', b'{"step": 7}',
                                  b'{"files": {"a": 5}}', b"version https://git-lfs.github.com/spec/v1\nsize 4\n"])
def test_a_damaged_manifest_is_named(tmp_path, data):
    uri = write(str(tmp_path / checkpoint_name(7)), make_checkpoint(), tmp_path / "local")
    (tmp_path / checkpoint_name(7) / MANIFEST).write_bytes(data)
    with pytest.raises(StorageError, match=r"manifest\.json is .*fetch it again, or delete"):
        read_checkpoint(uri, tmp_path / "fetched")


def test_random_generators_go_on_where_they_were():
    before = get_random_state()
    drawn = (torch.rand(3), np.random.rand(3), random.random())
    set_random_state(before)
    assert torch.equal(torch.rand(3), drawn[0]) and np.array_equal(np.random.rand(3), drawn[1]) and random.random() == drawn[2]
