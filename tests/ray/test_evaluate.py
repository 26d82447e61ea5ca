"""Evaluation end to end on a real Ray, with a known answer for every question in place of the model."""

import functools
import io
import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import evaluate as job
from pixellm.data.schema import region_rle
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.sources.shapes import ShapesSource
from pixellm.errors import ShardError, StorageError
from pixellm.evaluation.evaluate import EvaluateConfig, evaluate
from pixellm.evaluation.metrics import score_question, summarize
from pixellm.inference import batch as batch_module
from pixellm.masks import union_rles
from pixellm.testing import FakeSegmenter, pixels_key
from tests.data.sources.build import build_all

pytestmark = pytest.mark.ray
NUM_SCENES = 20


@pytest.fixture(scope="module")
def rows():
    return build_all(ShapesSource(num_scenes=NUM_SCENES, seed=3, split="val", questions_per_scene=3))[0]


@pytest.fixture(scope="module")
def shards(rows, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("shards"))
    manifest = write_shards(rows, folder, ShardOptions(shard_size_mb=0.05, row_group_mb=0.02))
    assert len(manifest.shards) > 2
    return folder


@pytest.fixture(scope="module")
def known(rows):
    """The right answer to each first and second question, and a wrong number of masks for each third one."""
    answers = {}
    for row in rows:
        key = pixels_key(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        for conversation in row["conversations"][:2]:
            masks = [union_rles([region_rle(row["regions"][index]) for index in target], (96, 96)) for target in conversation["targets"]]
            answers[key, conversation["question"]] = (conversation["answer"], masks)
        if len(row["conversations"]) > 2:
            answers[key, row["conversations"][2]["question"]] = ("nothing at all.", [])
    return answers


def expected_scores(rows):
    for row in rows:
        for index, conversation in enumerate(row["conversations"]):
            true = [region_rle(row["regions"][region]) for (region,) in conversation["targets"]]
            yield score_question(true if index < 2 else [], true)


def test_every_photo_once_by_several_actors(local_ray, rows, shards, known, tmp_path):
    config = EvaluateConfig(shards=shards, output=str(tmp_path), num_workers=2, cpus_per_worker=0.5, batch_size=3)
    lines: list[str] = []
    evaluation = evaluate(config, functools.partial(FakeSegmenter, known=known), progress=lines.append)
    assert [(answer.record["image_id"], answer.record["question_index"]) for answer in evaluation.answers] == [
        (row["image_id"], index) for row in rows for index in range(len(row["conversations"]))]
    assert evaluation.metrics == summarize(expected_scores(rows))
    assert evaluation.num_photos == NUM_SCENES and not evaluation.failures
    assert f"{NUM_SCENES} of {NUM_SCENES} photos" in lines[-2] and "judged by offline" in lines[-1]


def test_max_rows_takes_the_first_photos_of_the_shards(local_ray, shards, known, tmp_path):
    config = EvaluateConfig(shards=shards, output=str(tmp_path), max_rows=7, cpus_per_worker=0.5, batch_size=4)
    evaluation = evaluate(config, functools.partial(FakeSegmenter, known=known))
    stored = [image_id for uri in evaluation.manifest.shard_uris(shards) for image_id in pq.read_table(uri)["image_id"].to_pylist()]
    assert evaluation.num_photos == 7
    assert {answer.record["image_id"] for answer in evaluation.answers} == set(stored[:7])


def test_failing_photos_are_counted_and_the_others_scored(local_ray, rows, shards, known, tmp_path):
    word = "purple"
    broken = {row["image_id"] for row in rows if any(word in conversation["question"] for conversation in row["conversations"])}
    assert 0 < len(broken) < NUM_SCENES
    config = EvaluateConfig(shards=shards, output=str(tmp_path), cpus_per_worker=0.5)
    evaluation = evaluate(config, functools.partial(FakeSegmenter, known=known, failing=word))
    assert {record["image_id"] for record in evaluation.failures} == broken
    assert evaluation.failures_by_reason == {"RuntimeError": len(broken)}
    assert {answer.record["image_id"] for answer in evaluation.answers} == {row["image_id"] for row in rows} - broken


def test_job_writes_the_report_and_ends_with_json(local_ray, rows, shards, known, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(batch_module, "load_segmenter", lambda *_: FakeSegmenter(known=known))
    job.main([f"shards={shards}", f"output={tmp_path}/out", f"local_copy={tmp_path}/here", "cpus_per_worker=0.5", "num_examples=6"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = summarize(expected_scores(rows)).all
    assert figures["giou"] == round(expected.giou, 4) and figures["ciou"] == round(expected.ciou, 4)
    assert figures["num_wrong_count"] == expected.num_wrong_count > 0 and figures["mode"] == "free"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["metrics"]["all"]["giou"] == expected.giou
    page = (tmp_path / "here" / "report.html").read_text()
    assert page.count("<article>") == 6 and page == (tmp_path / "out" / "report.html").read_text()


def test_missing_manifest_and_missing_model(tmp_path, shards):
    with pytest.raises(ShardError, match="manifest"):
        evaluate(EvaluateConfig(shards=str(tmp_path), output=str(tmp_path)))
    with pytest.raises(StorageError, match="no model at"):
        evaluate(EvaluateConfig(shards=shards, output=str(tmp_path), model=str(tmp_path / "nothing")))
    with pytest.raises(SystemExit, match=r"error: .*manifest"):
        job.main([f"shards={tmp_path}", f"output={tmp_path}"])
