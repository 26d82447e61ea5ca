"""A run's checkpoint becomes a model directory."""

from dataclasses import replace

import pytest
import torch

from jobs import export as job
from pixellm.errors import ModelError
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.train.checkpoint import checkpoint_name
from pixellm.train.deepspeed import MOMENTS, TrainedState
from pixellm.train.export import export_checkpoint
from pixellm.train.loop import load_base
from pixellm.train.parameters import select_parameters
from pixellm.train.trainer import prepare_base
from tests.train.examples import make_config
from tests.train.test_checkpoint import make_checkpoint, write


def make_run(tmp_path, **changes):
    """A run's folder with its base and one checkpoint whose values are the base's plus one. Returns config and checkpoint URI."""
    config = make_config(storage=str(tmp_path / "runs"), model="tiny-random", **changes)
    model, _ = load_base(prepare_base(config))
    trained = {name: value.detach() + 1 for group in select_parameters(model, config) for name, value in group.parameters.items()}
    moments = {moment: {name: torch.zeros_like(value) for name, value in trained.items()} for moment in MOMENTS}
    checkpoint = replace(make_checkpoint(), config=config, state=TrainedState(trained, moments, 7))
    return config, write(f"{config.run_uri}/{checkpoint_name(7)}", checkpoint, tmp_path / "local"), trained


def test_exported_model_has_the_trained_values_and_the_rest_of_its_base(tmp_path, capsys):
    config, _, trained = make_run(tmp_path, frozen=["vision_tower"])
    job.main([f"checkpoint={config.run_uri}", f"output={tmp_path / 'model'}"])
    assert "exported test step 7" in capsys.readouterr().out
    exported = dict(PixelLMForConditionalGeneration.from_pretrained(tmp_path / "model").named_parameters())
    base = dict(load_base(prepare_base(config))[0].named_parameters())
    for name, value in exported.items():
        assert torch.equal(value, trained.get(name, base[name])), name
    PixelLMProcessor.from_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# test, step 7" in card and "photos_per_micro_step: 8" in card and "code revision `abc`" in card


def test_adapters_are_merged(tmp_path):
    _, uri, trained = make_run(tmp_path, lora={"r": 2})
    export_checkpoint(uri, str(tmp_path / "model"))
    exported, info = PixelLMForConditionalGeneration.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    layer = "language_model.model.layers.0.self_attn.q_proj"
    base = load_base(f"{tmp_path}/runs/test/base")[0].get_submodule(layer).weight
    product = trained[f"{layer}.lora_B.default.weight"] @ trained[f"{layer}.lora_A.default.weight"] * (16 / 2)
    torch.testing.assert_close(exported.get_submodule(layer).weight, base + product, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config, uri, _ = make_run(tmp_path)
    write(uri, replace(make_checkpoint(), config=config), tmp_path / "local")
    with pytest.raises(ModelError, match=r"holds codebook.input_rows .4, 3., which its base 'tiny-random' has not"):
        export_checkpoint(uri, str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_a_folder_without_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no finished checkpoint"):
        job.main([f"checkpoint={tmp_path}", f"output={tmp_path / 'model'}"])
