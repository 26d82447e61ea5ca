"""The predict job on a real Ray, with known answers in place of the model."""

import json

import numpy as np
import pytest
from PIL import Image

from jobs import predict as job
from pixellm.inference import batch as batch_module
from pixellm.masks import png_to_mask
from pixellm.testing import FakeSegmenter, random_photo

pytestmark = pytest.mark.ray
NAMES = ["000000000042.jpg", "b/000000000007.png", "b/c/room.webp", "turned.jpg"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for index, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        random_photo(20, 30 + index, seed=index).save(path, exif=exif)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def run(local_ray, photos, tmp_path, capsys, monkeypatch):
    def run(*more, max_failed_share=0.2):
        monkeypatch.setattr(batch_module, "load_segmenter", lambda *_: FakeSegmenter(num_targets=2))
        job.main([f"photos={photos}", "question=which part?", f"output={tmp_path}/out", "cpus_per_worker=0.5", "batch_size=2",
                  f"max_failed_share={max_failed_share}", *more])
        return json.loads(capsys.readouterr().out.splitlines()[-1]), tmp_path / "out"

    return run


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_coco_results_and_what_was_set_aside(run):
    figures, output = run("num_workers=2")
    assert (figures["num_photos"], figures["num_masks"], figures["set_aside"]) == (5, 8, {"photo_unreadable": 1})
    results = json.loads((output / "results.json").read_text())
    assert [result["image_id"] for result in results] == [42, 42, 7, 7, "b/c/room.webp", "b/c/room.webp", "turned.jpg", "turned.jpg"]
    assert json.loads((output / "result_ids.json").read_text())["image_ids"]["b/000000000007.png"] == [7]
    first = results[0]
    assert first["segmentation"]["size"] == [20, 30] and first["bbox"] == [0, 0, 15, 20] and first["phrase"] == "the part 1"
    assert first["category_id"] == 1 and first["score"] == 0.9
    assert results[-1]["segmentation"]["size"] == [33, 20], "sizes are those of the upright photo"
    assert [answer["photo"] for answer in lines_of(output / "answers.jsonl")] == NAMES
    assert [(each["photo"], each["reason"]) for each in lines_of(output / "set_aside.jsonl")] == [("broken.jpg", "photo_unreadable")]


def test_png_masks(run):
    _, output = run("format=png")
    masks = [png_to_mask((output / f"b/c/room.webp.{index}.png").read_bytes()) for index in range(2)]
    assert np.array_equal(masks[0], ~masks[1]) and masks[0].shape == (20, 32) and masks[0][:, :16].all() and not masks[0][:, 16:].any()
    assert len(list(output.rglob("*.png"))) == 8 and not (output / "results.json").exists()


def test_overlays(run):
    _, output = run("format=overlay")
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*.png")) == sorted(f"{name}.png" for name in NAMES)
    with Image.open(output / "turned.jpg.png") as picture:
        assert picture.height > picture.width


def test_too_many_failures_end_the_job_after_everything_is_written(run, tmp_path):
    with pytest.raises(SystemExit, match=r"error: 1 of 5 photos were set aside, by reason \{'photo_unreadable': 1\}.*at most 10%"):
        run(max_failed_share=0.1)
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 8
    assert [each["photo"] for each in lines_of(tmp_path / "out" / "set_aside.jsonl")] == ["broken.jpg"]


def test_slips_end_the_job(tmp_path, photos, capsys):
    with pytest.raises(SystemExit, match="has no photos"):
        job.main([f"photos={tmp_path}/none", "question=what?", f"output={tmp_path}"])
    with pytest.raises(SystemExit, match="no model at"):
        job.main([f"photos={photos}", "question=what?", f"output={tmp_path}", f"model={tmp_path}/none"])
    with pytest.raises(SystemExit):
        job.main([f"photos={photos}", "question= ", f"output={tmp_path}"])
    assert "question" in capsys.readouterr().err
