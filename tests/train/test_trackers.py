"""MLflow's own file store and W&B's own client, offline, take a run's figures and pictures; a resumed run goes on in the same place."""

import pytest
from PIL import Image

from pixellm.train.sinks import build_sinks
from tests.train.examples import make_config

FIGURES = {"loss/total": 1.5, "loss_text/vqa": 2.0}


def write_twice(config):
    for step in (1, 2):
        sinks = build_sinks(config, "train", first_step=step - 1)
        sinks.write(step, {name: value * step for name, value in FIGURES.items()})
        sinks.write_picture(step, "validation/example_0", Image.new("RGB", (8, 6), (200, 0, 0)))
        sinks.close()
        assert sinks.num_failures == 0


def test_mlflow_has_one_run_for_all_writers(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server is what a run would use; the store is the same code without one
    uri = (tmp_path / "mlruns").as_uri()
    config = make_config(storage=str(tmp_path / "runs"), telemetry={"mlflow": {"tracking_uri": uri, "experiment": "tests"}})
    write_twice(config)
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert [run.info.run_name for run in runs] == ["test"] and runs[0].info.status == "FINISHED"
    assert [(each.step, each.value) for each in client.get_metric_history(runs[0].info.run_id, "loss_text/vqa")] == [(1, 2.0), (2, 4.0)]
    assert runs[0].data.params["photos_per_micro_step"] == "8"
    pictures = client.list_artifacts(runs[0].info.run_id, "validation/example_0")
    assert [each.path for each in pictures] == [f"validation/example_0/step_{step:08d}.png" for step in (1, 2)]


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    write_twice(make_config(storage=str(tmp_path / "runs"), telemetry={"wandb": {"project": "tests", "mode": "offline"}}))
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert files and len({file.name for file in files}) == 1, "the resumed run has the id of the first"
    records = files[-1].read_bytes()
    assert b"loss_text/vqa" in records and b"photos_per_micro_step" in records
    pictures = list(files[-1].parent.glob("files/media/images/validation/example_0*.png"))
    assert [Image.open(picture).size for picture in pictures] == [(8, 6)]


def test_a_tracker_that_cannot_be_reached_is_told_and_left_out(tmp_path, capsys):
    config = make_config(storage=str(tmp_path), telemetry={"mlflow": {"tracking_uri": "nothing://x"}})
    sinks = build_sinks(config, "train")
    sinks.write(1, FIGURES)
    sinks.close()
    assert "mlflow cannot be used" in capsys.readouterr().out and sinks.num_failures == 0
    assert list((tmp_path / "test" / "tensorboard").iterdir())
