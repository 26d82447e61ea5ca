"""Pictures of answers as files: one that cannot be made costs its photo only."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pixellm.errors import StorageError
from pixellm.inference import prediction_files
from pixellm.inference.batch import RECORD_SCHEMA
from pixellm.inference.prediction_files import write_pictures
from pixellm.masks import mask_to_rle
from pixellm.testing import random_photo


def record(photo):
    rle = mask_to_rle(np.ones((2, 3), dtype=bool))
    return {"image_id": photo, "text": "the cat.", "spans": [[0, 7]], "masks": [rle], "scores": [0.5]}


def write_all(tmp_path, names, output):
    for name in names:
        random_photo(2, 3).save(tmp_path / name)
    records = [record(name) | {"source": str(tmp_path), "split": "", "question": "what?"} for name in names]
    return write_pictures(pa.Table.from_pylist(records, schema=RECORD_SCHEMA), str(output), "overlay").to_pylist()


def test_a_picture_that_fails_is_set_aside_alone(tmp_path, monkeypatch):
    draw = prediction_files.draw_answer

    def fail_once(photo, *given):
        failures.append(photo)
        if len(failures) == 2:
            raise MemoryError
        return draw(photo, *given)

    failures = []
    monkeypatch.setattr(prediction_files, "draw_answer", fail_once)
    found = write_all(tmp_path, ["a.png", "b.png", "c.png"], tmp_path / "out")
    assert [(each["image_id"], each["failure"], each["failure_detail"]) for each in found] == [
        ("a.png", None, None), ("b.png", "MemoryError", "MemoryError"), ("c.png", None, None)]
    assert found[0]["masks"] and found[1]["masks"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png.png", "c.png.png"]
    assert Image.open(io.BytesIO((tmp_path / "out/a.png.png").read_bytes())).width == 768


def test_an_output_that_cannot_be_written_ends_the_job(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a\.png\.png"):
        write_all(tmp_path, ["a.png"], tmp_path / "file")
