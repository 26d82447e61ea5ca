"""What a converted model is written into."""

import pytest

from pixellm.errors import ModelError
from pixellm.model.presets import tiny_config
from pixellm.model.tensor_plan import Plan, write_model


def test_a_folder_whose_weights_would_win_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"holds a model\.safetensors"):
        write_model(tiny_config(), Plan(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
