"""Checkpoints in a thread: training goes on, a store that is away is asked again, and no error is lost."""

import threading

import pytest

from pixellm.errors import StorageError, StorageUnavailableError
from pixellm.storage import join_uri, write_bytes
from pixellm.train import writer as module
from pixellm.train.checkpoint import PARAMETERS, checkpoint_name, find_latest_checkpoint, read_checkpoint
from pixellm.train.retention import list_checkpoints
from pixellm.train.writer import CheckpointWriter, keep_trying
from tests.train.examples import largest_difference
from tests.train.test_checkpoint import make_checkpoint


def make_writer(tmp_path, before=lambda: None, patience_s=60.0):
    return CheckpointWriter(str(tmp_path / "run"), keep_last=2, keep_best=0, patience_s=patience_s, before=before)


def test_training_goes_on_while_a_checkpoint_is_on_its_way(tmp_path):
    may_end = threading.Event()
    writer = make_writer(tmp_path, before=lambda: may_end.wait(60))
    first = make_checkpoint(1)
    writer.submit(first)
    assert writer.is_busy, "submit came back before the checkpoint was through"
    writer.check()
    may_end.set()
    for step in (2, 3):
        writer.submit(make_checkpoint(step))
    writer.finish()
    assert not writer.is_busy and [each.step for each in list_checkpoints(writer.run_uri)] == [2, 3]
    assert find_latest_checkpoint(writer.run_uri).endswith(checkpoint_name(3))


def test_what_fails_in_the_thread_is_raised_by_the_next_call(tmp_path):
    (tmp_path / "run").write_text("a file where the folder has to be")
    writer = make_writer(tmp_path)
    writer.submit(make_checkpoint())
    writer._thread.join()
    with pytest.raises(StorageError, match="check the path and its permissions"):
        writer.check()
    writer.check()


def test_a_store_that_is_away_is_asked_again_and_the_manifest_comes_last(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    calls = []

    def fails_twice(folder, uri):
        calls.append(uri)
        if len(calls) < 3:
            write_bytes(join_uri(uri, PARAMETERS), b"half")
            assert find_latest_checkpoint(writer.run_uri) is None
            raise StorageUnavailableError("no answer")
        upload(folder, uri)

    upload = module.upload_checkpoint
    monkeypatch.setattr(module, "upload_checkpoint", fails_twice)
    writer, written = make_writer(tmp_path), make_checkpoint()
    writer.submit(written)
    writer.finish()
    assert len(calls) == 3
    read = read_checkpoint(find_latest_checkpoint(writer.run_uri), tmp_path / "read")
    assert largest_difference(read.state.parameters, written.state.parameters) == 0


def test_patience_has_an_end_and_is_for_stores_only(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.01)
    calls = []

    def fails(error):
        calls.append(error)
        raise error

    with pytest.raises(StorageUnavailableError, match="away"):
        keep_trying(lambda: fails(StorageUnavailableError("away")), 0.2, "test")
    assert len(calls) > 1
    calls.clear()
    with pytest.raises(StorageError, match="wrong"):
        keep_trying(lambda: fails(StorageError("wrong")), 60, "test")
    assert len(calls) == 1
