"""The contenders give the same answers, the floor counts what it says. No test here looks at how long anything took."""

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig

from jobs.benchmarks import inference
from jobs.benchmarks import inference_contenders as contenders
from jobs.benchmarks.bars import Bar, draw_bars
from jobs.benchmarks.inference import _mixed_answers, _profile
from jobs.benchmarks.inference_contenders import CODEBOOK_IDS, build_answer, build_questions
from jobs.benchmarks.inference_floor import MachineRates, Work, count_work
from pixellm.inference.config import EngineConfig
from pixellm.model import PixelLMConfig, PixelLMForConditionalGeneration


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return contenders.share_codebook(PixelLMForConditionalGeneration(PixelLMConfig(
        vision_config=CLIPVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=448,
                                       patch_size=56),
        text_config=LlamaConfig(vocab_size=1008, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4),
        image_token_id=contenders.IMAGE_ID, codebook_token_ids=CODEBOOK_IDS, vision_feature_layers=[-1, -2], decoder_hidden_size=32,
        decoder_num_heads=4, decoder_mlp_size=48))).eval()


def test_all_contenders_give_the_same_masks(model):
    questions = build_questions([build_answer(9, 1), build_answer(20, 2), build_answer(14, 2)], num_photos=2)
    engine = contenders.EngineContender(model, EngineConfig(slot_tokens=512))
    unforced = contenders.EngineContender(model, EngineConfig(slot_tokens=512), contenders.StepperWithoutForcedGroups)
    expected = contenders.answer_naively(model, questions)
    assert [len(answered.mask_logits) for answered in expected] == [1, 2, 2]
    for answers in (contenders.answer_by_generate(model, questions, 1), contenders.answer_by_generate(model, questions, 2),
                    engine.answer(questions), engine.answer(questions), unforced.answer(questions)):
        for answered, other in zip(answers, expected, strict=True):
            torch.testing.assert_close(torch.stack(answered.mask_logits), torch.stack(other.mask_logits), atol=1e-4, rtol=0)  # 3.3e-6 seen
            assert 0 < answered.first_token_s < answered.first_mask_s <= answered.end_s


def test_a_run_gives_all_keys_tables_and_the_picture(model, monkeypatch, tmp_path):
    monkeypatch.setattr(inference, "build_model", lambda size, dtype, device: model)
    result = inference.run(inference.Config(suite="inference", quick=True, output=str(tmp_path), threads=1))
    assert result.headline.keys() >= {
        "speedup_vs_naive_1", "speedup_vs_naive_16", "speedup_vs_naive_16_on_2", "speedup_vs_generate_one", "speedup_vs_generate_static",
        "over_floor_16", "forced_group_gain", "photo_cache_gain"}
    assert all(value > 0 for value in result.headline.values())
    latency, profile = result.tables
    assert [row[0] for row in latency.rows] == [case.name.removeprefix("float32: ") for case in result.cases]
    assert sum(row[2] for row in profile.rows) == pytest.approx(1)
    with Image.open(tmp_path / "inference.png") as picture:
        assert picture.width > 0


def test_scripts():
    assert build_answer(17, 2) == [5, 5, *CODEBOOK_IDS, 5, 5, 5, *CODEBOOK_IDS]
    for answer in _mixed_answers(50):
        assert 16 <= len(answer) <= 64 and 1 <= answer.count(CODEBOOK_IDS[0]) <= 6


def test_work_grows_with_what_is_asked(model):
    answer = build_answer(14, 1)
    one, two_on_one, two = (count_work(model, build_questions([answer] * num, photos)) for num, photos in ((1, 1), (2, 1), (2, 2)))
    for part in one:
        by_photo = part in ("vision tower", "mask decoder, by photo")
        assert two[part].flop == 2 * one[part].flop and two_on_one[part].flop == (1 if by_photo else 2) * one[part].flop
    layer = 4 * 32**2 + 2 * 32 * 48 + 2 * 65 * 32  # multiplications by token: projections, MLP, attention
    patches, projector = 64 * 32 * 3 * 56**2, 256 * (32 * 96 + 96 * 48)
    assert one["vision tower"].flop == 2 * (2 * 65 * layer + patches + projector)


def test_the_floor_is_the_slower_of_computing_and_reading():
    rates = MachineRates(flop_per_s=10.0, bytes_per_s=2.0)
    assert Work(100, 4).floor_s(rates) == 10 and Work(10, 4).floor_s(rates) == 2


def test_a_profile_leaves_the_engine_as_it_was(model):
    engine = contenders.EngineContender(model, EngineConfig(slot_tokens=512))
    questions = build_questions([build_answer(9, 1)], 1)
    before = set(vars(engine.stepper)), set(vars(engine.stepper.model))
    assert set(_profile(engine, questions)) == {"vision tower", "prefill and answer tokens", "mask decoder, by photo",
                                                "mask decoder, by target", "rest"}
    assert (set(vars(engine.stepper)), set(vars(engine.stepper.model))) == before
    assert len(engine.answer(questions)[0].mask_logits) == 1


def test_a_longer_bar_is_a_larger_value():
    picture = draw_bars("seconds", [Bar("a", 0.5, "0.5", (255, 0, 0)), Bar("b", 20.0, "20", (0, 0, 255))])
    red, blue = (sum(pixel == color for pixel in picture.get_flattened_data()) for color in ((255, 0, 0), (0, 0, 255)))
    assert 0 < red < blue
