"""COCO results: the ids of the annotation file, a number only for names like COCO's, and never the id of another photo."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO

from pixellm.errors import ConfigError
from pixellm.inference.prediction_files import to_coco_results, write_lists
from pixellm.inference.result_ids import ids_from_annotations, ids_from_names
from pixellm.masks import mask_to_rle
from pixellm.testing import random_photo


def record(photo, failure=None):
    rle = mask_to_rle(np.ones((2, 3), dtype=bool))
    answer = {"text": "the cat.", "spans": [[0, 7]], "masks": [rle], "scores": [0.5], "finish_reason": "stop"}
    return {"image_id": photo, "failure": failure, "failure_detail": failure, **({} if failure else answer)}


def write_photos(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        random_photo(2, 3).save(folder / name)
    return str(folder)


def write_annotations(folder, images):
    images = [{"height": 2, "width": 3, **image} if isinstance(image, dict) else image for image in images]
    (folder / "instances.json").write_text(json.dumps({
        "images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}))
    return str(folder / "instances.json")


def test_without_a_file_only_names_like_cocos_have_a_number():
    found = ids_from_names(["000000544519.jpg", "a/COCO_val2014_000000000042.jpg", "000001.jpg", "1.jpg", "cat.jpg", "2024.png",
                            "frame_000000000007.jpg", "0000000000001.jpg", "\u0660" * 12 + ".jpg"])
    assert [ids[0] for ids in found.of_photo.values()] == [544519, 42, *list(found.of_photo)[2:]]
    assert found.notes[0] == "image ids: COCO's numbers of twelve digits for 2 photos, the path for 7"
    assert "give annotations=FILE" in found.notes[-1]


def test_two_photos_never_share_a_number():
    photos = ["a/000000000001.jpg", "b/000000000001.jpg", "COCO_train2014_000000000001.jpg", "000000000002.jpg", "000000000002.png",
              "000000000003.jpg"]
    found = ids_from_names(photos)
    assert found.of_photo == {photo: [photo] for photo in photos[:5]} | {"000000000003.jpg": [3]}
    assert found.notes[1].startswith(
        "photos that share their number with another and have their path: 5 (a/000000000001.jpg, ")


def test_the_files_ids_are_taken_and_what_it_lacks_is_told(tmp_path):
    photos = ["000001.jpg", "000002.jpg", "a/cat.jpg", "b/dog.png", "new.jpg"]
    uri = write_photos(tmp_path / "photos", photos)
    file = write_annotations(tmp_path, [
        {"id": 0, "file_name": "000001.jpg"}, {"id": 1, "file_name": "000002.jpg"}, {"id": 64.0, "file_name": "a/cat.jpg"},
        {"id": "d", "file_name": "b/dog.png"}, {"id": 7, "file_name": "b/dog.png"}, {"id": 9, "file_name": "elsewhere.jpg"},
        {"file_name": "new.jpg"}, {"id": None, "file_name": "new.jpg"}, {"id": True, "file_name": "new.jpg"}, 5])
    found = ids_from_annotations(file, uri, photos)
    assert found.of_photo == {"000001.jpg": [0], "000002.jpg": [1], "a/cat.jpg": [64], "b/dog.png": ["d", 7], "new.jpg": []}
    assert type(found.of_photo["a/cat.jpg"][0]) is int
    assert found.notes[0] == f"image ids: those of {file} for 4 of 5 photos"
    assert [note.partition(" (")[0] for note in found.notes[1:]] == [
        "photos that it lacks, whose masks are in results_without_id.json: 1",
        "photos with several ids, whose masks are listed for each: 1", "images of the file that are left out: 4"]
    results = to_coco_results([*map(record, photos[:4]), record("new.jpg", "photo_format")], found.of_photo)
    assert [result["image_id"] for result in results] == [0, 1, 64, "d", 7]
    assert all((result["phrase"], result["bbox"]) == ("the cat", [0, 0, 3, 2]) for result in results)


def test_a_name_in_two_folders_is_no_ones_id(tmp_path):
    photos = ["a/1.jpg", "b/1.jpg", "c.jpg"]
    uri = write_photos(tmp_path / "photos", photos)
    file = write_annotations(tmp_path, [{"id": 5, "file_name": "1.jpg"}, {"id": 6, "file_name": "c.jpg"}])
    found = ids_from_annotations(file, uri, photos)
    assert found.of_photo == {"a/1.jpg": [], "b/1.jpg": [], "c.jpg": [6]}
    assert any("images of the file that are left out: 1 (photo_ambiguous" in note for note in found.notes)


@pytest.mark.parametrize("content", ["{}", "[]", "404: Not Found", "", '{"images": 5}'])
def test_a_file_of_another_form_is_named(tmp_path, content):
    uri = write_photos(tmp_path / "photos", ["1.jpg"])
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(ConfigError, match=r"instances\.json"):
        ids_from_annotations(str(tmp_path / "instances.json"), uri, ["1.jpg"])


def test_a_file_of_other_photos_is_an_error(tmp_path):
    uri = write_photos(tmp_path / "photos", ["1.jpg"])
    with pytest.raises(ConfigError, match=r"has none of the 1 photos .* \(such as 1.jpg\)"):
        ids_from_annotations(write_annotations(tmp_path, [{"id": 1, "file_name": "other.jpg"}]), uri, ["1.jpg"])


def test_pycocotools_takes_the_results(tmp_path):
    photos = ["000001.jpg", "000002.jpg", "new.jpg"]
    uri = write_photos(tmp_path / "photos", photos)
    file = write_annotations(tmp_path, [{"id": 0, "file_name": "000001.jpg"}, {"id": 1, "file_name": "000002.jpg"}])
    ids = ids_from_annotations(file, uri, photos)
    write_lists([*map(record, photos)], str(tmp_path / "out"), ids)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(file)
        found = truth.loadRes(str(tmp_path / "out" / "results.json"))
    assert [each["image_id"] for each in found.loadAnns(found.getAnnIds())] == [0, 1]
    assert json.loads((tmp_path / "out" / "results_without_id.json").read_text())[0]["image_id"] == "new.jpg"
    assert json.loads((tmp_path / "out" / "result_ids.json").read_text()) == {"notes": ids.notes, "image_ids": ids.of_photo}
    write_lists([record("a.jpg")], str(tmp_path / "png"))
    assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["answers.jsonl", "set_aside.jsonl"]
