"""What is trained, and adapters."""

import copy

import pytest
import torch

from pixellm.errors import ModelError
from pixellm.model.packing import unpack_batch
from pixellm.train.config import PARTS, LoraSettings
from pixellm.train.forward import forward_losses
from pixellm.train.parameters import add_adapters, merge_adapters, parameter_table, select_parameters, unread_tower_parameters
from tests.train.examples import base_model, make_batch, make_config


@pytest.fixture
def model():
    return copy.deepcopy(base_model()[0])


def test_every_parameter_belongs_to_one_part(model):
    groups = select_parameters(model, make_config())
    assert [group.part for group in groups] == list(PARTS)
    names = [name for group in groups for name in group.parameters]
    left_out = {name for name, _ in model.named_parameters()} - set(names)
    assert len(names) == len(set(names)) and left_out == {"vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias"}


def test_frozen_parts_and_unread_layers_do_not_train(model):
    model.config.vision_feature_layers = [-3, -5]
    groups = select_parameters(model, make_config(frozen=["language_model"], learning_rates={"projector": 0}))
    assert [group.part for group in groups] == ["vision_tower", "codebook", "mask_head"]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for group in groups for name in group.parameters}
    assert not [name for name in trained if "encoder.layers.4." in name or "encoder.layers.5." in name]
    assert [name for name in trained if "encoder.layers.3." in name]
    tensors = unpack_batch(make_batch([1, 2]).tensors)
    output = model(*(tensors[name] for name in ("pixel_values", "resized_sizes_hw", "photo_index", "input_ids", "attention_mask")))
    (output.logits.sum() + output.mask_logits.sum()).backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


@pytest.mark.parametrize("changes", [
    {}, {"frozen": ["vision_tower", "projector"]}, {"lora": {"r": 2}, "frozen": ["vision_tower"]}, {"lora": {"r": 2, "token_tables": True}},
    {"frozen": ["vision_tower", "projector", "language_model", "codebook"]}, {"frozen": ["mask_head"], "mask_loss_resolution": "photo"}],
    ids=["everything", "frozen", "lora", "tables", "mask head", "no mask head"])
def test_the_losses_reach_exactly_what_is_promised(model, changes):
    """Every promised parameter gets a gradient that is not 0, and no other gets any."""
    config = make_config(**changes)
    torch.manual_seed(0)
    promised = {name for group in select_parameters(model, config) for name in group.parameters}
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # at its initial 0 nothing would reach lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    tensors = unpack_batch(make_batch([1, 2, 3], mask_resolution=config.mask_loss_resolution).tensors)
    losses = forward_losses(model.train(), tensors, config)
    (losses.text.sum() + losses.bce.sum() + losses.dice.sum()).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == promised == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name, parameter in model.named_parameters() if name in promised and not bool(parameter.grad.any())]


def test_table_names_the_sizes(model):
    total = sum(parameter.numel() for parameter in model.parameters())
    table = parameter_table(model, select_parameters(model, make_config(frozen=["vision_tower"])))
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert lines["vision_tower"][1:] == ["0", "-"] and lines["mask_head"][-1] == "0.001" and lines["all"][0] == f"{total:,}"


def test_only_adapters_train_in_an_adapted_language_model(model):
    groups = select_parameters(model, make_config(lora={"r": 2}))
    language = next(group for group in groups if group.part == "language_model")
    assert language.parameters and all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in language.parameters)
    assert not list(name for name in unread_tower_parameters(model) if "encoder" in name)


def test_merged_adapters_compute_the_same(model):
    torch.manual_seed(0)
    ids = torch.arange(12).reshape(2, 6)
    names = {name for name, _ in model.named_parameters()}
    add_adapters(model.language_model, LoraSettings(r=2, dropout=0.0))
    for name, parameter in model.language_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.eval()
    with torch.no_grad():
        adapted = model.language_model(ids).logits
        merge_adapters(model.language_model)
        assert {name for name, _ in model.named_parameters()} == names
        torch.testing.assert_close(model.language_model(ids).logits, adapted, rtol=0, atol=2e-4)  # 3e-5: worst of 12 seeds


def test_adapters_on_a_projection_that_is_not_there(model):
    with pytest.raises(ModelError, match=r"names 'gate_projection', which .* did you mean 'gate_proj'\? Its projections are .*q_proj"):
        add_adapters(model.language_model, LoraSettings(targets=("q_proj", "gate_projection")))


def test_token_tables_beside_adapters(model):
    tables = {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"}
    language = next(group for group in select_parameters(model, make_config(lora={"r": 2, "token_tables": True}))
                    if group.part == "language_model")
    assert {name for name in language.parameters if "lora_" not in name} == tables
