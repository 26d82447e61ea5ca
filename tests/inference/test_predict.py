"""What the driver hands to its workers; tests/ray/test_predict.py runs them."""

import pytest

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
