"""A small ablation end to end on Ray Tune, and its second run, which finds everything done."""

import json

import pytest
from PIL import Image

from jobs import ablate as job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_it_runs_once_and_goes_on(local_ray, tmp_path, capsys):
    arguments = [f"output={tmp_path}", "steps=3", "num_seeds=2", "num_held_out=3", "max_new_tokens=24", "cpus_per_trial=1",
                 "variants=[{name: base}, {name: mean, fusion: mean}]"]
    job.main(arguments)
    first = json.loads((tmp_path / "ablation.json").read_text())
    assert "4 of 4 trials to run" in capsys.readouterr().out
    assert [row["variant"] for row in first["rows"]] == ["base", "mean"] and len(first["rows"][0]["giou"]["values"]) == 2
    assert Image.open(tmp_path / "ablation.png").width == 1000
    (tmp_path / "trials" / "mean-1.json").unlink()
    job.main(arguments)
    assert "1 of 4 trials to run" in capsys.readouterr().out
    again = json.loads((tmp_path / "ablation.json").read_text())
    assert again["rows"] == first["rows"], "a trial is a function of its settings"
    with pytest.raises(SystemExit, match="made with other settings"):
        job.main([*arguments[:1], "steps=4", *arguments[2:]])
