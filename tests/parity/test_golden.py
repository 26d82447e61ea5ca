"""The released model's numbers, and what a checkpoint that does not fit is told."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pixellm.errors import ModelError
from pixellm.model import PixelLMForConditionalGeneration
from pixellm.model.conversion import OFFICIAL, plan_official, resize_position_table, resize_shifted_position_table
from pixellm.model.tensor_plan import translate, write_model
from tests.parity.check_golden import breaks_a_group, convert, measure, over_tolerance, write_official


@pytest.mark.parametrize("name", ["a", "b", "e"])
def test_every_key_and_loss_agrees(shared_dir, name):
    errors = measure(shared_dir / "golden" / name)
    assert len(errors) >= 20 and not over_tolerance(errors), errors


def test_an_answer_with_a_broken_group_is_compared_too(shared_dir, tmp_path):
    """The released model may predict any id. Here the answer of `e` ends inside its first group."""
    folder = tmp_path / "e"
    folder.mkdir()
    shutil.copyfile(shared_dir / "golden" / "e" / "meta.json", folder / "meta.json")
    golden = dict(np.load(shared_dir / "golden" / "e" / "tensors.npz"))
    meta = json.loads((folder / "meta.json").read_text())
    golden["gen_ids"] = golden["gen_ids"][:meta["prompt_len"] + 4]
    golden["gen_masks"], golden["gen_scores"] = golden["gen_masks"][:0], golden["gen_scores"][:0]
    np.savez(folder / "tensors.npz", **golden)
    assert breaks_a_group(golden["gen_ids"][meta["prompt_len"]:].tolist(), meta["seg_ids"])
    assert not breaks_a_group([5, *meta["seg_ids"], *meta["seg_ids"], 7], meta["seg_ids"])
    assert not over_tolerance(measure(folder))


def test_round_trip_through_our_own_form(shared_dir, tmp_path):
    meta = json.loads((shared_dir / "golden" / "a" / "meta.json").read_text())
    model = convert(meta, tmp_path / "converted")
    model.save_pretrained(tmp_path / "saved")
    loaded = PixelLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    for (name, tensor), (other_name, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(tensor, other), name
    assert loaded.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {"_name_or_path": ""}


def test_what_does_not_fit_is_listed(shared_dir, tmp_path):
    meta = json.loads((shared_dir / "golden" / "b" / "meta.json").read_text())
    write_official(meta, tmp_path / "official", tmp_path / "tower")
    file = tmp_path / "official" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.mask_decoder.level_embed.weight"]
    tensors["model.surprise.weight"] = torch.zeros(1)
    tensors["model.norm.weight"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(ModelError) as error:
        plan_official(tmp_path / "official", tmp_path / "tower", meta["seg_ids"], meta["tokens_per_scale_N"])
    for said in ("missing: mask_head.decoder.level_embed", "not known: model.surprise.weight", "norm.weight is [3], expected [64]"):
        assert said in str(error.value)


def test_bin_shards_are_read_as_tensors_only(shared_dir, tmp_path):
    meta = json.loads((shared_dir / "golden" / "b" / "meta.json").read_text())
    write_official(meta, tmp_path / "official", tmp_path / "tower")
    file = tmp_path / "official" / "model.safetensors"
    names = sorted(tensors := load_file(file))
    for shard, half in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: tensors[name] for name in half}, tmp_path / "official" / f"pytorch_model-{shard:05d}-of-00002.bin")
    arguments = tmp_path / "official", tmp_path / "tower", meta["seg_ids"], meta["tokens_per_scale_N"]
    config, expected = plan_official(*arguments)
    write_model(config, expected, tmp_path / "one")
    file.unlink()
    write_model(*plan_official(*arguments), tmp_path / "two")
    one, two = (load_file(tmp_path / folder / "model-00001.safetensors") for folder in ("one", "two"))
    assert one.keys() == two.keys() == expected.read.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_position_tables():
    """Row 0 is CLS in the right way, the last row in the released one; a table of the same side stays as it is."""
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(17, 3)).astype(np.float32))
    assert torch.equal(resize_position_table(table, 4), table) and torch.equal(resize_shifted_position_table(table, 4), table)
    assert torch.equal(resize_position_table(table, 8)[0], table[0]) and torch.equal(resize_shifted_position_table(table, 8)[-1], table[-1])
    assert resize_position_table(table, 8).shape == (65, 3)


def test_the_hypernetworks_layers_are_counted_with_their_activations():
    assert translate("model.mask_decoder.output_hypernetworks_mlps.0.layers.2.bias", OFFICIAL) == "mask_head.decoder.hypernetwork.4.bias"
    assert translate("model.unheard_of", OFFICIAL) is None
