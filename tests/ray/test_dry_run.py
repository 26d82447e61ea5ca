"""The dry run as a job on a real Ray: it exits with 0 where nothing would stop the run, else with 1 and all problems."""

import pytest

from jobs import train as job
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources.shapes import ShapesSource
from tests.data.sources.build import build_all

pytestmark = pytest.mark.ray


def test_dry_run_of_a_job(local_ray, tmp_path, capsys):
    shards = str(tmp_path / "shards")
    write_shards(build_all(ShapesSource(num_scenes=12, questions_per_scene=2))[0], shards, ShardOptions())
    arguments = ["run=look", f"storage={tmp_path / 'runs'}", f"data=[{shards}]", "model=tiny", "steps=4", "stream_memory_mb=64",
                 "dry_run=true", "assume.targets=2", "assume.text_tokens=64"]
    with pytest.raises(SystemExit) as ended:
        job.main(arguments)
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and "nothing would stop it" in printed and "memory of one worker" in printed
    assert not list((tmp_path / "runs").iterdir()), "nothing was begun"
    with pytest.raises(SystemExit) as ended:
        job.main([*(each for each in arguments if not each.startswith("data=")), "num_workers=64", f"data=[{tmp_path}]"])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and "the run asks for 64" in printed and "no manifest.json" in printed
