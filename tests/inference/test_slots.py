"""Attention over slots agrees with each model's own, however its rows are cut into pieces; models that need more are refused."""

import itertools
import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3NextConfig,
)

from pixellm.errors import ConfigError, ModelError
from pixellm.inference import slots
from pixellm.inference.config import EngineConfig
from pixellm.inference.slots import Piece, SlotCache
from pixellm.model.presets import preset_config

SHAPE = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 128, "pad_token_id": 0}
GROUPED = SHAPE | {"num_key_value_heads": 2}
SUPPORTED = [
    LlamaConfig(**SHAPE), LlamaConfig(**GROUPED), LlamaConfig(**GROUPED | {"num_key_value_heads": 1}), Qwen2Config(**GROUPED),
    Qwen3Config(**GROUPED, head_dim=32), GemmaConfig(**GROUPED, head_dim=16), MistralConfig(**GROUPED, sliding_window=None),
    MixtralConfig(**GROUPED, num_local_experts=4), PhiConfig(**GROUPED), GPTNeoXConfig(**SHAPE),
    GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4),
    OPTConfig(vocab_size=100, hidden_size=64, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64),
]
NUM_ROWS = 30


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().base_model


@torch.inference_mode()
@pytest.mark.parametrize("config", SUPPORTED, ids=lambda config: f"{config.model_type}-{getattr(config, 'num_key_value_heads', '')}")
def test_pieces_of_any_length_agree_with_the_models_own_attention(config):
    model, rng = build(config), random.Random(0)
    cache = SlotCache(model, num_slots=4, capacity=NUM_ROWS)
    embeds = torch.randn(4, NUM_ROWS, 64)
    positions = torch.arange(NUM_ROWS).repeat(4, 1) + torch.tensor([[0], [3], [0], [20]])  # positions are not places in the slot
    expected = torch.cat([model(inputs_embeds=embeds[slot:slot + 1], position_ids=positions[slot:slot + 1]).last_hidden_state
                          for slot in range(4)])
    found, num_past = torch.zeros_like(expected), [0] * 4
    while min(num_past) < NUM_ROWS:
        lengths = [min(rng.choice((0, 1, 1, 1, 4, 9)), NUM_ROWS - past) for past in num_past]
        pieces = [Piece(slot, num_past[slot], length) for slot, length in enumerate(lengths) if length]
        if pieces:
            rows = [(piece.slot, slice(piece.num_past, piece.num_past + piece.num_rows)) for piece in pieces]
            hidden = cache.forward(torch.cat([embeds[row] for row in rows]), torch.cat([positions[row] for row in rows]), pieces)
            for row, part in zip(rows, hidden.split([piece.num_rows for piece in pieces]), strict=True):
                found[row] = part
        num_past = [past + length for past, length in zip(num_past, lengths, strict=True)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # 5e-7 is the worst seen


@torch.inference_mode()
def test_copied_rows_answer_like_the_first():
    model = build(LlamaConfig(**GROUPED))
    cache = SlotCache(model, num_slots=3, capacity=NUM_ROWS)
    embeds, positions = torch.randn(12, 64), torch.arange(12)
    expected = cache.forward(embeds, positions, [Piece(0, 0, 12)])
    cache.write(2, *cache.read(0, 8))
    cache.clear(0, 12)
    assert not cache.keys[:, 0].any() and not cache.values[:, 0].any()
    torch.testing.assert_close(cache.forward(embeds[8:], positions[8:], [Piece(2, 8, 4)]), expected[8:], atol=1e-5, rtol=0)


def test_the_given_model_keeps_its_attention_and_its_weights_are_shared():
    model = build(LlamaConfig(**GROUPED))
    before = model.config._attn_implementation
    cache = SlotCache(model, num_slots=1, capacity=8)
    assert model.config._attn_implementation == before and all(layer.self_attn.config is model.config for layer in model.layers)
    shared = itertools.zip_longest(model.parameters(), cache._model.parameters())
    assert all(one is other for one, other in shared)


def test_bytes_per_row_are_what_the_cache_takes():
    cache = SlotCache(build(Qwen3Config(**GROUPED, head_dim=32)), num_slots=3, capacity=5)
    assert cache.keys.nbytes + cache.values.nbytes == 3 * 5 * cache.bytes_per_row == 3 * 5 * 2 * 2 * (32 + 32) * 4


def test_a_window_as_wide_as_the_slots_changes_nothing():
    model = build(MistralConfig(**GROUPED, sliding_window=64))
    SlotCache(model, num_slots=1, capacity=64)
    with pytest.raises(ModelError, match="sliding window of 64 below the slots' capacity of 65"):
        SlotCache(model, num_slots=1, capacity=65)


@pytest.mark.parametrize(("config", "message"), [
    (Gemma2Config(**GROUPED), "softcap"),
    (GptOssConfig(**GROUPED), "s_aux"),
    (BloomConfig(vocab_size=100, hidden_size=64, n_layer=2, n_head=4), "does not take its attention"),
    (Qwen3NextConfig(**GROUPED), "does not take its attention"),
    (LlamaConfig(**GROUPED, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}), "depend on"),
], ids=lambda value: getattr(value, "model_type", None))
def test_what_a_model_needs_and_slots_have_not_is_a_clear_error(config, message):
    with pytest.raises(ModelError, match=message):
        SlotCache(build(config), num_slots=1, capacity=128)


def test_slots_are_bounded_in_bytes():
    model = build(LlamaConfig(**GROUPED))
    bytes_per_slot = 2 * 2 * 2 * 16 * 4 * NUM_ROWS  # keys and values, layers, key heads, width, float32
    assert SlotCache(model, 4, NUM_ROWS).keys.nbytes * 2 == 4 * bytes_per_slot
    assert [SlotCache(model, 4, NUM_ROWS, factor * bytes_per_slot).num_slots for factor in (1, 3.9, 4, 9)] == [1, 3, 4, 4]
    with pytest.raises(ConfigError, match=r"one slot take 0\.01536 MB, more than kv_cache_mb \(0\.01382\)"):
        SlotCache(model, 4, NUM_ROWS, 0.9 * bytes_per_slot)


def test_slots_beyond_the_devices_memory_are_refused(monkeypatch):
    monkeypatch.setattr(slots, "_free_bytes", lambda device: 50_000)
    with pytest.raises(ConfigError, match=r"4 slots take 0\.06144 MB, the device has 0\.05 MB left"):
        SlotCache(build(LlamaConfig(**GROUPED)), 4, NUM_ROWS)


@pytest.mark.parametrize(("preset", "num_slots", "slot_mb"), [("7b", 8, 537), ("13b", 5, 839)])
def test_the_papers_models_have_few_slots_by_default(preset, num_slots, slot_mb):
    """As the description of `kv_cache_mb` says; on `meta`, which needs no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(preset_config(preset).text_config, dtype=torch.bfloat16).eval().base_model
    config = EngineConfig()
    cache = SlotCache(model, config.num_slots, config.slot_tokens, config.kv_cache_mb * 1e6)
    assert (cache.num_slots, round(cache.bytes_per_row * config.slot_tokens / 1e6)) == (num_slots, slot_mb)
