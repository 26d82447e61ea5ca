"""Jobs that ask for what no node has: they say what they wait for, and stop in time."""

import pytest
from PIL import Image

from jobs import evaluate as evaluate_job
from jobs import predict as predict_job
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.errors import ModelError, ResourcesError
from pixellm.resources import count_placed, describe_shortage, run_task, wait_for_room
from tests.data.rows import make_row

pytestmark = pytest.mark.ray
NODE = {"CPU": 4.0, "GPU": 2.0, "memory": 8e9}


@pytest.mark.parametrize(("bundles", "num_placed"), [
    ([{"CPU": 1, "GPU": 1}] * 5, 4), ([{"CPU": 3}] * 3, 2), ([{"CPU": 0.1}] * 81, 80), ([{"GPU": 3}], 0), ([{"memory": 9e9}], 0),
    ([{"TPU": 1}], 0), ([], 0)])
def test_bundles_are_placed_whole_on_one_node(bundles, num_placed):
    assert count_placed(bundles, [NODE, NODE]) == num_placed


@pytest.mark.parametrize("asked", ["gpus_per_worker=1", "cpus_per_worker=64", "gpus_per_worker=0.5"])
def test_evaluate_and_predict_stop_with_what_they_waited_for(local_ray, asked, tmp_path, capsys):
    write_shards([make_row(0)], str(tmp_path / "shards"), ShardOptions())
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    name, amount = asked.partition("_")[0].upper()[:-1], asked.partition("=")[2]
    for job, arguments in ((evaluate_job, [f"shards={tmp_path}/shards"]), (predict_job, [f"photos={tmp_path}", "question=what?"])):
        with pytest.raises(SystemExit) as ended:
            job.main([*arguments, f"output={tmp_path}/out", asked, "resource_wait_s=3"])
        assert f"{amount} {name}" in str(ended.value) and "no other node came in 3 s (resource_wait_s)" in str(ended.value)
        assert "waiting for nodes since 2 s: a worker with its reading and writing needs 1 x (" in capsys.readouterr().out


def test_tasks_wait_for_memory_and_keep_the_errors_of_their_function(local_ray):
    def count(text):
        return len(text)

    with pytest.raises(ResourcesError, match=r"drawing needs 1 x \(1 CPU and 900000.0 GB memory\).*ask for less"):
        run_task(count, "abc", bundle={"CPU": 1, "memory": 9e14}, what="drawing", patience_s=0.5)
    assert run_task(count, "abc", bundle={"CPU": 1, "memory": 1e6}, what="counting", patience_s=5, near=True) == 3

    def fail():
        raise ModelError("not that")

    with pytest.raises(ModelError, match=r"^not that$"):
        run_task(fail, bundle={"CPU": 0.5}, what="failing", patience_s=5)


def test_room_that_is_there_is_not_spoken_of(local_ray):
    said: list[str] = []
    wait_for_room([{"CPU": 1}] * 4, "the test", 10, said.append)
    assert said == [] and describe_shortage([{"CPU": 1}] * 4, "the test") is None
    assert "room for 4 of the 5" in str(describe_shortage([{"CPU": 1}] * 5, "the test"))
