"""Which checkpoints stay on storage."""

import json

import pytest

from pixellm.storage import exists, join_uri, write_bytes
from pixellm.train.checkpoint import MANIFEST, checkpoint_name
from pixellm.train.retention import find_best_checkpoint, list_checkpoints, record_validation, remove_unneeded


@pytest.fixture
def run_uri(tmp_path):
    return str(tmp_path / "run")


def make(run_uri, step, giou=None, finished=True):
    uri = join_uri(run_uri, checkpoint_name(step))
    write_bytes(join_uri(uri, "parameters.safetensors"), b"weights")
    if finished:
        write_bytes(join_uri(uri, MANIFEST), json.dumps({"step": step, "files": {}}).encode())
    if giou is not None:
        assert record_validation(uri, {"giou": giou, "ciou": 0.5})
    return uri


def steps(run_uri):
    return [each.step for each in list_checkpoints(run_uri)]


def test_the_newest_and_the_best_stay(run_uri):
    for step, giou in ((10, 0.3), (20, 0.6), (30, 0.5), (40, 0.1), (50, None), (60, None)):
        make(run_uri, step, giou)
    assert find_best_checkpoint(run_uri).step == 20 and list_checkpoints(run_uri)[0].validation == {"giou": 0.3, "ciou": 0.5}
    removed = remove_unneeded(run_uri, keep_last=2, keep_best=2)
    assert steps(run_uri) == [20, 30, 50, 60]
    assert removed == [join_uri(run_uri, checkpoint_name(step)) for step in (10, 40)] and not any(exists(uri) for uri in removed)
    make(run_uri, 70, 0.7)
    remove_unneeded(run_uri, keep_last=1, keep_best=1)
    assert steps(run_uri) == [70]


def test_one_that_is_being_validated_stays_until_it_is_known(run_uri):
    first, *_ = [make(run_uri, step) for step in (10, 20, 30)]
    record_validation(first, {})
    remove_unneeded(run_uri, keep_last=1, keep_best=1)
    assert steps(run_uri) == [10, 30] and find_best_checkpoint(run_uri) is None
    record_validation(first, {"giou": 0.2})
    record_validation(join_uri(run_uri, checkpoint_name(30)), {"giou": 0.2})
    assert find_best_checkpoint(run_uri).step == 30, "of equals the later"
    remove_unneeded(run_uri, keep_last=1, keep_best=1)
    assert steps(run_uri) == [30]
    assert not record_validation(first, {"giou": 0.9}) and not exists(first)


def test_half_written_ones_go_once_a_later_one_is_finished(run_uri):
    make(run_uri, 10, finished=False)
    assert remove_unneeded(run_uri, 1, 0) == [] and find_best_checkpoint(run_uri) is None
    make(run_uri, 20)
    later = make(run_uri, 30, finished=False)
    write_bytes(join_uri(run_uri, "base", "config.json"), b"{}")
    assert remove_unneeded(run_uri, 1, 0) == [join_uri(run_uri, checkpoint_name(10))]
    assert steps(run_uri) == [20] and exists(later) and exists(join_uri(run_uri, "base"))
