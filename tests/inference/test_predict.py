"""What the driver hands to its workers; tests/ray/test_predict.py runs them."""

import os

import pytest

from pixellm.errors import ConfigError
from pixellm.inference import batch
from pixellm.inference import predict as module
from pixellm.testing import random_photo


class Seen(Exception):
    pass


def test_workers_get_absolute_paths(tmp_path, monkeypatch):
    """They have another working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "model").mkdir()
    random_photo(9, 9).save(tmp_path / "photos" / "1.png")

    def see(config, names, build_segmenter):
        seen.append((config.photos, config.output, config.model, names, build_segmenter.args[0].model))
        raise Seen

    monkeypatch.setattr(module, "_answered", see)
    seen = []
    for output, model in (("out", "model"), ("s3://bucket/out", "tiny")):
        with pytest.raises(Seen):
            module.predict(module.PredictConfig(photos="photos", question="what?", output=output, model=model))
    photos, folder = str(tmp_path / "photos"), str(tmp_path / "model")
    assert seen == [(photos, str(tmp_path / "out"), folder, ["1.png"], folder), (photos, "s3://bucket/out", "tiny", ["1.png"], "tiny")]


@pytest.fixture
def asked(monkeypatch):
    """The names of the photos that `predict` asks about; each is answered by nothing."""
    names = []

    def answer(config, found, build_segmenter):
        names.append(found)
        return type("Dataset", (), {"iter_rows": lambda self: iter([batch.set_aside(
            {"image_id": name, "source": config.photos, "split": ""}, ValueError()) for name in found])})()

    monkeypatch.setattr(module, "_answered", answer)
    return names


def write_photos(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        random_photo(9, 9).save(folder / name)


@pytest.mark.parametrize("output", ["answers", "x/../answers/", "link/answers"])
def test_earlier_answers_below_the_photos_are_not_asked_about(tmp_path, asked, output):
    photos = tmp_path / "photos"
    write_photos(photos, "a.jpg", "b/c.PNG", "answers2/d.webp", "answers/a.jpg.png", "answers/b/c.png.0.png")
    (photos / "x").mkdir()
    (photos / "link").symlink_to(".")
    module.predict(module.PredictConfig(photos=str(photos), question="what?", output=f"{photos}/{output}", format="overlay"))
    assert asked == [["a.jpg", "answers2/d.webp", "b/c.PNG"]]


def test_the_folder_of_photos_is_no_output(tmp_path, asked):
    write_photos(tmp_path / "photos", "a.jpg")
    for output in (tmp_path / "photos", f"{tmp_path}/photos/b/.."):
        with pytest.raises(ConfigError, match="is the folder of photos"):
            module.predict(module.PredictConfig(photos=str(tmp_path / "photos"), question="what?", output=str(output)))
    module.predict(module.PredictConfig(photos=str(tmp_path / "photos"), question="what?", output=str(tmp_path)))
    assert asked == [["a.jpg"]]


def test_clutter_is_not_asked_about_and_odd_names_are_set_aside(tmp_path, asked):
    photos = tmp_path / "photos"
    write_photos(photos, "a.jpg", "._a.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg", ".ipynb_checkpoints/a.jpg")
    (photos / "a.jpg").rename(photos / "a.jpg ")  # a name that ends with a space
    os.rename(photos / "._a.jpg", str(photos) + "/caf\udce9.jpg")
    os.rename(photos / "@eaDir/a.jpg", str(photos) + "/notes\udce9.txt")
    records = module.predict(module.PredictConfig(photos=str(photos), question="what?", output=str(tmp_path / "out")))
    assert asked == [["a.jpg "]]
    assert [(each["image_id"], each["failure"]) for each in records] == [("a.jpg ", "ValueError"), ("caf\\xe9.jpg", "name_not_utf8")]
    assert "caf\\xe9.jpg is not UTF-8" in records[1]["failure_detail"]
    assert all(list(each) == batch.RECORD_SCHEMA.names for each in records), "jobs.predict counts the masks of all of them"
    assert '{"photo": "caf\\\\xe9.jpg", "reason": "name_not_utf8"' in (tmp_path / "out/set_aside.jsonl").read_text()
