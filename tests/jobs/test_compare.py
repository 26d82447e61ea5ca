"""`jobs.compare` on folders of two evaluations that were made without a model."""

import json

import numpy as np
import pytest

from jobs import compare as job
from pixellm.evaluation.evaluate import EvaluateConfig, Evaluation
from pixellm.evaluation.report import SCORES, write_scores
from tests.evaluation.test_report import CORNER, LEFT, answered


def write(folder, right_of, photos=range(60), **settings) -> str:
    """An evaluation whose answer about photo p is right where `right_of(p)`."""
    answers = [answered(f"{photo:03d}", [LEFT] if right_of(photo) else [CORNER], [LEFT]) for photo in photos]
    config = EvaluateConfig(shards="shards", model=f"models/{folder.name}", output=str(folder), **settings)
    evaluation = Evaluation(config, None, answers, [], len(answers), 1.0, [(10.0, 0.0)[:len(each.score.ious)] for each in answers], "test")
    folder.mkdir()
    (folder / SCORES).write_bytes(write_scores(evaluation))
    return str(folder)


def test_what_is_larger_than_chance(tmp_path, capsys):
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    bad, good, same = (write(tmp_path / name, lambda photo, level=level: hard[photo] < level)
                       for name, level in (("bad", 0.4), ("good", 0.8), ("same", 0.41)))
    job.main([bad, good])
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])
    assert found["num_photos"] == 60 and found["figures"]["giou"]["larger_than_chance"] and "larger than chance" in output
    assert found["figures"]["giou"]["b"] - found["figures"]["giou"]["a"] == pytest.approx(np.mean(hard < 0.8) - np.mean(hard < 0.4))
    job.main([bad, same])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not found["figures"]["giou"]["larger_than_chance"]


def test_only_photos_that_both_have_are_compared(tmp_path, capsys):
    one, other = write(tmp_path / "one", lambda photo: photo % 2, range(40)), write(tmp_path / "other", lambda photo: True, range(30, 60))
    job.main([one, other])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["num_photos"] == 10 and (found["figures"]["giou"]["a"], found["figures"]["giou"]["b"]) == (0.5, 1.0)


@pytest.mark.parametrize("settings, message", [
    ({"protocol": "referring"}, "protocol is muse in one and referring"),
    ({"teacher_forced": True}, "mode is free in one and teacher_forced"),
    ({"photos": range(100, 130)}, "no photo in common")])
def test_what_cannot_be_compared(tmp_path, settings, message):
    one, other = write(tmp_path / "one", bool), write(tmp_path / "other", bool, **settings)
    with pytest.raises(SystemExit, match=message):
        job.main([one, other])


def test_wrong_folders(tmp_path):
    with pytest.raises(SystemExit, match=r"has no scores.parquet"):
        job.main([str(tmp_path), str(tmp_path)])
    (tmp_path / SCORES).write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="not a Parquet file"):
        job.main([str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit, match="two folders"):
        job.main([])
