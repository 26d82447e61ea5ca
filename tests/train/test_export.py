"""A run's checkpoint becomes a model directory."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from jobs import export as job
from pixellm.data.manifest import SourceInfo
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.errors import ModelError, StorageError
from pixellm.model import PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.packing import unpack_batch
from pixellm.train.adapters import LORA, TRAINED, load_adapters
from pixellm.train.base import load_base, prepare_base
from pixellm.train.checkpoint import checkpoint_name
from pixellm.train.deepspeed import MOMENTS, TrainedState
from pixellm.train.export import export_checkpoint
from pixellm.train.forward import MODEL_INPUTS
from pixellm.train.parameters import select_parameters
from pixellm.train.restore import put_values
from pixellm.train.retention import record_validation
from tests.data.rows import make_row
from tests.train.examples import make_batch, make_config
from tests.train.test_checkpoint import make_checkpoint, write


@pytest.fixture(autouse=True)
def task_here(monkeypatch):
    """The task runs in this process; tests/ray/test_driver_memory.py runs it on Ray."""
    monkeypatch.setattr(job, "run_task", lambda function, *arguments, **options: function(*arguments))


@pytest.fixture
def shards_of_one_row(tmp_path):
    uri = str(tmp_path / "shards")
    write_shards([make_row(0)], uri, ShardOptions(), [SourceInfo(name="drawn", version="3", settings={})])
    return uri


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
    export_checkpoint(uri, [str(tmp_path / "model")])
    exported, info = PixelLMForConditionalGeneration.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    layer = "language_model.model.layers.0.self_attn.q_proj"
    base = load_base(f"{tmp_path}/runs/test/base")[0].get_submodule(layer).weight
    product = trained[f"{layer}.lora_B.default.weight"] @ trained[f"{layer}.lora_A.default.weight"] * (16 / 2)
    torch.testing.assert_close(exported.get_submodule(layer).weight, base + product, rtol=1e-5, atol=1e-5)


def test_bfloat16_keeps_the_values_and_replaces_an_earlier_export(tmp_path):
    _, uri, _ = make_run(tmp_path, lora={"r": 2})
    (tmp_path / "model").mkdir()
    for name in ("model.safetensors", "model-00007.safetensors", "notes.txt"):
        (tmp_path / "model" / name).write_bytes(b"old")
    export_checkpoint(uri, [str(tmp_path / "model")], torch.bfloat16)
    left = {file.name for file in (tmp_path / "model").iterdir()}
    assert "notes.txt" in left and not left & {"model.safetensors", "model-00007.safetensors"}
    model = PixelLMForConditionalGeneration.from_pretrained(tmp_path / "model", dtype="auto")
    export_checkpoint(uri, [str(tmp_path / "whole")])
    whole = PixelLMForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert model.dtype == torch.bfloat16
    for (name, value), (_, expected) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.equal(value, expected.bfloat16()), name


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config, uri, _ = make_run(tmp_path)
    write(uri, replace(make_checkpoint(), config=config), tmp_path / "local")
    with pytest.raises(ModelError, match=r"holds codebook.input_rows .4, 3., which its base 'tiny-random' has not"):
        export_checkpoint(uri, [str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def test_a_folder_without_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no finished checkpoint"):
        job.main([f"checkpoint={tmp_path}", f"output={tmp_path / 'model'}"])


def test_push_is_a_second_place_and_never_a_hub(tmp_path, monkeypatch, capsys):
    config, _, _ = make_run(tmp_path)
    arguments = [f"checkpoint={config.run_uri}", f"output={tmp_path / 'model'}"]
    with pytest.raises(SystemExit, match=r"push=me/model may be a name on a hub, .* write ./me/model for a folder, or s3://BUCKET/model"):
        job.main([*arguments, "push=me/model"])
    with pytest.raises(SystemExit, match="scheme 'hf' is not supported"):
        job.main([*arguments, "push=hf://me/model"])
    assert not (tmp_path / "model").exists(), "the error comes before the work"
    monkeypatch.chdir(tmp_path)
    job.main([*arguments, "push=./copy"])
    assert sorted(file.name for file in (tmp_path / "copy").iterdir()) == sorted(file.name for file in (tmp_path / "model").iterdir())
    assert f"to {tmp_path / 'model'} and ./copy" in capsys.readouterr().out


@pytest.fixture
def adapters(tmp_path):
    """Folder of adapters, and the whole model of the same checkpoint."""
    config, uri, _ = make_run(tmp_path, lora={"r": 2}, frozen=["vision_tower"])
    job.main([f"checkpoint={config.run_uri}", f"output={tmp_path / 'adapters'}", "adapters_only=true"])
    export_checkpoint(uri, [str(tmp_path / "model")])
    return tmp_path / "adapters", PixelLMForConditionalGeneration.from_pretrained(tmp_path / "model").eval()


def logits_of(model):
    tensors = unpack_batch(make_batch([1, 2]).tensors)
    with torch.no_grad():
        output = model(**{name: tensors[name] for name in MODEL_INPUTS})
    return output.logits, output.mask_logits


def test_adapters_alone_make_the_same_model_again(adapters, tmp_path):
    folder, whole = adapters
    stored = sum(file.stat().st_size for file in folder.iterdir())
    assert stored < 0.6 * sum(file.stat().st_size for file in (tmp_path / "model").iterdir()), "the tower and the language model stay away"
    model, processor = load_adapters(str(folder))
    assert all(torch.equal(one, other) for one, other in zip(logits_of(model), logits_of(whole), strict=True))
    assert isinstance(processor, PixelLMProcessor) and "goes onto `tiny-random`" in (folder / "README.md").read_text()
    with pytest.raises(StorageError, match=r"has no adapter.json"):
        load_adapters(str(tmp_path / "model"))


def test_damaged_adapters_are_named(adapters):
    folder, _ = adapters
    for name, contents in (("adapter.json", (b"404: Not Found", b"[]", b"{}", b'{"base": 5, "lora": null}')),
                           (TRAINED, (b"", b"version https://git-lfs.github.com/spec/v1\n")), (LORA, (b"<html>",))):
        kept = (folder / name).read_bytes()
        for data in contents:
            (folder / name).write_bytes(data)
            with pytest.raises(ModelError) as error:
                load_adapters(str(folder))
            assert str(folder / name) in str(error.value) and "fetch it again" in str(error.value)
        (folder / name).write_bytes(kept)


def test_peft_reads_the_adapters(adapters, tmp_path):
    from peft import PeftModel

    folder, whole = adapters
    base, _ = load_base(f"{tmp_path}/runs/test/base")
    put_values(base, load_file(folder / TRAINED), "the folder holds", "base")
    (expected, _), (without, _) = logits_of(whole), logits_of(base.eval())
    found, _ = logits_of(PeftModel.from_pretrained(base, str(folder)))
    assert float((without - expected).abs().max()) > 1
    assert float((found - expected).abs().max()) < 0.02  # not merged, so rounded otherwise; weights near 1 amplify it: measured 0.0053


def test_card_names_data_and_what_the_validation_found(tmp_path, shards_of_one_row):
    config, uri, _ = make_run(tmp_path, data=[shards_of_one_row])
    assert record_validation(uri, {"giou": 0.5, "ciou": 0.25})
    job.main([f"checkpoint={config.run_uri}", f"output={tmp_path / 'model'}", "which=best"])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| giou | 0.5 |" in card and f"- `{shards_of_one_row}`: 1 rows of drawn (3)" in card
    about = json.loads((tmp_path / "model" / "training.json").read_text())
    assert about["validation"] == {"giou": 0.5, "ciou": 0.25} and about["data"][0]["num_rows"] == 1


def test_best_needs_a_validation(tmp_path):
    config, _, _ = make_run(tmp_path)
    with pytest.raises(SystemExit, match="holds no validated checkpoint"):
        job.main([f"checkpoint={config.run_uri}", f"output={tmp_path / 'model'}", "which=best"])
