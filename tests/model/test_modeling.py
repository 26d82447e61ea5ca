"""The model's own rules: what is loaded is what was saved, targets follow their groups, padding and batching change nothing."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, CLIPVisionConfig, GPT2Config

from pixellm.errors import ModelError
from pixellm.model import PixelLMConfig, PixelLMForConditionalGeneration, PixelLMProcessor
from pixellm.model.presets import pretrained_dir, tiny_config
from pixellm.model.processing_pixellm import TrainingConversation
from pixellm.testing import random_photo, tiny_model_and_processor

INPUTS = ("pixel_values", "resized_sizes_hw", "photo_index", "input_ids", "attention_mask")


@pytest.fixture(scope="module")
def tiny():
    return tiny_model_and_processor()


def conversation(photo_index: int, answer: str, size_hw: tuple[int, int] = (96, 80)) -> TrainingConversation:
    masks = [torch.rand(size_hw).numpy() > 0.5 for _ in range(answer.count("{seg}"))]
    return TrainingConversation(photo_index, "where is the red circle?", answer, masks)


def run(model, batch):
    with torch.no_grad():
        return model(**{key: batch[key] for key in INPUTS})


def test_round_trip_through_auto_classes(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, PixelLMForConditionalGeneration) and isinstance(loaded_processor, PixelLMProcessor)
    assert AutoConfig.from_pretrained(tmp_path).codebook_token_ids == model.config.codebook_token_ids
    for (name, tensor), (other_name, other) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other_name and torch.equal(tensor, other), name
    batch = processor.collate([random_photo(96, 80)], [conversation(0, "the red circle {seg}.")])
    again = loaded_processor.collate([random_photo(96, 80)], [conversation(0, "the red circle {seg}.")])
    assert all(torch.equal(batch[key], again[key]) for key in INPUTS)
    torch.testing.assert_close(run(loaded.eval(), batch).mask_logits, run(model, batch).mask_logits, atol=1e-5, rtol=0)  # 2e-6 seen


def test_targets_come_in_the_order_of_their_groups(tiny):
    model, processor = tiny
    photos = [random_photo(96, 80), random_photo(40, 96, seed=1)]
    conversations = [conversation(1, "the ring {seg} and the square {seg}.", (40, 96)), conversation(0, "none."),
                     conversation(0, "the circle {seg}.")]
    batch = processor.collate(photos, conversations)
    output = run(model, batch)
    size = model.config.mask_size
    assert output.mask_logits.shape == (3, size, size)
    assert output.target_conversation.tolist() == batch["target_conversation"].tolist() == [0, 0, 2]
    alone = run(model, processor.collate(photos[:1], [dataclasses.replace(conversations[2], photo_index=0)]))
    torch.testing.assert_close(output.mask_logits[2], alone.mask_logits[0], atol=1e-4, rtol=0)  # 2e-6 seen


def test_no_target_keeps_every_parameter_in_the_graph(tiny):
    model, processor = tiny
    batch = processor.collate([random_photo(96, 80)], [conversation(0, "none.")])
    output = model(**{key: batch[key] for key in INPUTS})
    assert output.mask_logits.shape[0] == 0
    model.zero_grad()
    (output.logits.sum() + output.mask_logits.sum()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias"}
    model.zero_grad()


def test_padding_of_the_photo_is_not_seen(tiny):
    """A wide photo leaves padding below: whatever stands there must not change the answer (here no image token straddles the edge)."""
    model, processor = tiny
    batch = processor.collate([random_photo(48, 96)], [conversation(0, "the circle {seg}.", (48, 96))])
    clean = run(model, batch)
    height = int(batch["resized_sizes_hw"][0, 0])
    batch["pixel_values"][:, :, height:] = 5.0
    text_positions = batch["attention_mask"][0] == 1
    torch.testing.assert_close(run(model, batch).logits[0][text_positions], clean.logits[0][text_positions], atol=1e-5, rtol=0)  # 0 seen


@pytest.mark.parametrize("broken", ["cut", "swapped", "alone"])
def test_a_broken_group_is_an_error(tiny, broken):
    model, processor = tiny
    batch = processor.collate([random_photo(96, 80)], [conversation(0, "the circle {seg}.")])
    ids = batch["input_ids"]
    group = (ids[0] == model.config.codebook_token_ids[0]).nonzero()[0, 0]
    if broken == "cut":
        ids[0, group + 3] = 5
    elif broken == "swapped":
        ids[0, group + 1], ids[0, group + 2] = ids[0, group + 2].item(), ids[0, group + 1].item()
    else:
        ids[0, group] = 5
    with pytest.raises(ModelError, match="codebook tokens"):
        run(model, batch)


def test_wrong_number_of_image_placeholders_is_an_error(tiny):
    model, processor = tiny
    batch = processor.collate([random_photo(96, 80)], [conversation(0, "none.")])
    batch["input_ids"][0, 0] = 5
    with pytest.raises(ModelError, match="35 image placeholders"):
        run(model, batch)


def test_gamma_weights_sum_to_one_in_absolute_value(tiny):
    decoder = tiny[0].mask_head.decoder
    assert torch.allclose(decoder.scale_weights(), torch.tensor([0.5, 0.5]))
    with torch.no_grad():
        original = decoder.gamma.clone()
        decoder.gamma.copy_(torch.tensor([3.0, -1.0]))
        assert torch.allclose(decoder.scale_weights(), torch.tensor([0.75, -0.25]))
        decoder.gamma.copy_(original)


def test_codebook_rows_replace_the_tables_rows(tiny):
    model, _ = tiny
    ids = torch.tensor([[5, *model.config.codebook_token_ids]])
    embeds = model.embed_tokens(ids, None)
    torch.testing.assert_close(embeds[0, 1:], model.codebook.input_rows)
    hidden = torch.randn(3, model.config.text_config.hidden_size)
    logits = model.token_logits(hidden)
    assert logits.shape[-1] == max(model.config.codebook_token_ids) + 1
    torch.testing.assert_close(logits[:, list(model.config.codebook_token_ids)], hidden @ model.codebook.output_rows.T)


@pytest.mark.parametrize(("change", "message"), [
    ({"codebook_token_ids": [513, 514]}, "codebook_token_ids needs 2 scales x 2 tokens"),
    ({"scale_upsampling": [1, 3]}, "scale_upsampling"),
    ({"decoder_hidden_size": 60}, "decoder_hidden_size 60"),
])
def test_contradictory_configuration_is_an_error(change, message):
    values = {**tiny_config().to_dict(), **change}
    with pytest.raises(ModelError, match=message):
        PixelLMConfig(**values)


@pytest.mark.parametrize("num_scales", [1, 3])
def test_other_tower_language_model_and_number_of_scales(num_scales):
    """Nothing is hard-coded: a GPT-2-shaped language model, one or three scales."""
    config = PixelLMConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8),
        text_config=GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        image_token_id=64, codebook_token_ids=list(range(65, 65 + 2 * num_scales)), num_tokens_per_scale=2,
        vision_feature_layers=[-1, -2, -3][:num_scales], image_tokens_per_side=2, decoder_hidden_size=32, decoder_num_heads=4,
        decoder_mlp_size=64)
    model = PixelLMForConditionalGeneration(config).eval()
    ids = torch.tensor([[64] * 4 + [7, *config.codebook_token_ids, 8]])
    output = model(torch.randn(1, 3, 32, 32), torch.tensor([[32, 32]]), torch.tensor([0]), ids, torch.ones_like(ids))
    assert output.mask_logits.shape == (1, config.mask_size, config.mask_size)
    assert len(output.scale_mask_logits) == num_scales and config.mask_size == (8 if num_scales == 1 else 16)


def test_shipped_weights_load():
    model = PixelLMForConditionalGeneration.from_pretrained(pretrained_dir("tiny"))
    assert sum(parameter.numel() for parameter in model.parameters()) < 5e6
