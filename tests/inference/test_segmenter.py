"""Generation: a batch answers as each question alone would, groups are whole, states are the ones a full forward gives."""

import pytest
import torch

from pixellm.errors import InputError, ModelError
from pixellm.inference.engine import generate
from pixellm.inference.photos import load_photo
from pixellm.inference.segmenter import Segmenter
from pixellm.masks import rle_to_mask
from pixellm.testing import random_photo, tiny_model_and_processor


@pytest.fixture(scope="module")
@torch.no_grad()
def eager():
    """A random model that opens groups: its first codebook token wins wherever it would have said one of its own frequent words."""
    model, processor = tiny_model_and_processor(seed=3)
    photos = [random_photo(*size, seed=i) for i, size in enumerate(SIZES)]
    said = generate(model, *prompts(model, processor, photos, QUESTIONS), processor.tokenizer.eos_token_id, 12)
    with torch.no_grad():
        model.codebook.output_rows[0].copy_(1.01 * model.language_model.get_output_embeddings().weight[said[0].token_ids[5]])
    return model, processor


QUESTIONS = ["where is the red circle?", "what?", "where is the blue ring, the red one and the other square?", "the green"]
SIZES = [(96, 96), (60, 96), (96, 30), (200, 120)]


@torch.no_grad()
def prompts(model, processor, photos, questions):
    images = processor.image_processor.preprocess(photos)
    features = model.encode_photos(images["pixel_values"], images["resized_sizes_hw"])
    tensors = processor.collate_prompts(questions, [tuple(size) for size in images["resized_sizes_hw"].tolist()])
    return tensors["input_ids"], tensors["attention_mask"], features.image_embeds


def test_a_batch_answers_as_each_question_alone(eager):
    model, processor = eager
    photos = [random_photo(*size, seed=i) for i, size in enumerate(SIZES)]
    eos = processor.tokenizer.eos_token_id
    together = generate(model, *prompts(model, processor, photos, QUESTIONS), eos, 40)
    assert sum(len(answer.states) for answer in together) > 0, "the fixture must open groups, or this test shows nothing"
    for photo, question, answer in zip(photos, QUESTIONS, together, strict=True):
        alone = generate(model, *prompts(model, processor, [photo], [question]), eos, 40)[0]
        assert alone.token_ids == answer.token_ids and alone.finish_reason == answer.finish_reason
        for state, other in zip(answer.states, alone.states, strict=True):
            torch.testing.assert_close(state, other, atol=1e-4, rtol=0)  # 4e-6 seen


@torch.no_grad()
def test_kept_states_are_those_of_a_full_forward(eager):
    model, processor = eager
    photo, question = random_photo(96, 70), QUESTIONS[0]
    input_ids, attention_mask, embeds = prompts(model, processor, [photo], [question])
    answer = generate(model, input_ids, attention_mask, embeds, processor.tokenizer.eos_token_id, 40)[0]
    assert answer.states
    images = processor.image_processor.preprocess([photo])
    whole = torch.cat((input_ids, torch.tensor([answer.token_ids])), 1)
    mask = torch.cat((attention_mask, torch.ones(1, len(answer.token_ids), dtype=torch.int64)), 1)
    output = model(images["pixel_values"], images["resized_sizes_hw"], torch.tensor([0]), whole, mask)
    states, _ = model.codebook_states(output.hidden_states, whole)
    torch.testing.assert_close(torch.stack(answer.states), states, atol=1e-4, rtol=0)  # 4e-6 seen
    predicted = output.logits[0, input_ids.shape[1] - 1:-1].clone()
    never = [*model.config.codebook_token_ids[1:], model.config.image_token_id]
    predicted[:, never] = -torch.inf
    free = [i for i, token in enumerate(answer.token_ids) if token not in never]
    assert predicted.argmax(-1)[free].tolist() == [answer.token_ids[i] for i in free]


@pytest.mark.parametrize("max_new_tokens", range(1, 24))
def test_groups_are_never_broken(eager, max_new_tokens):
    model, processor = eager
    photos = [random_photo(*size, seed=i) for i, size in enumerate(SIZES)]
    group = list(model.config.codebook_token_ids)
    for answer in generate(model, *prompts(model, processor, photos, QUESTIONS), processor.tokenizer.eos_token_id, max_new_tokens):
        assert len(answer.token_ids) <= max_new_tokens and not answer.group
        starts = [i for i, token in enumerate(answer.token_ids) if token == group[0]]
        assert all(answer.token_ids[i:i + len(group)] == group for i in starts)
        assert len(answer.states) == len(starts) and sum(token in group for token in answer.token_ids) == len(starts) * len(group)


def test_segmentations_have_masks_of_the_photos_size(eager):
    segmenter = Segmenter(*eager, batch_size=3)
    photos = [random_photo(*size, seed=i) for i, size in enumerate(SIZES)]
    results = segmenter.segment(photos, QUESTIONS, max_new_tokens=40)
    assert any(result.targets for result in results)
    for result, (height, width) in zip(results, SIZES, strict=True):
        assert result.size_hw == (height, width) and result.answer.count("{seg}") == len(result.targets)
        for target in result.targets:
            mask = rle_to_mask(target.rle)
            assert mask.shape == (height, width) and mask.sum() == target.area
            assert result.text[slice(*target.span)] == target.phrase and 0 <= target.score <= 1


def test_one_vision_pass_for_each_distinct_photo(eager, monkeypatch):
    model, processor = eager
    seen = []
    encode = model.encode_photos
    monkeypatch.setattr(model, "encode_photos", lambda pixels, sizes: (seen.append(len(pixels)), encode(pixels, sizes))[1])
    photo, other = random_photo(96, 96), random_photo(50, 96, seed=1)
    Segmenter(model, processor).segment([photo, other, photo, photo], QUESTIONS, max_new_tokens=4)
    assert seen == [2]


def test_bad_questions_and_lengths_are_clear_errors(eager):
    segmenter = Segmenter(*eager)
    with pytest.raises(InputError, match="question 1 is empty"):
        segmenter.segment([random_photo(9, 9)] * 2, ["what?", "  "])
    with pytest.raises(ModelError, match="exceed the model's 512 positions"):
        segmenter.segment([random_photo(9, 9)], ["what?"], max_new_tokens=500)


@pytest.mark.parametrize(("data", "code"), [
    (b"", "photo_format"), (b"GIF89a", "photo_format"), (b"\xff\xd8\xff\xe0 nothing", "photo_unreadable"),
    (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"\x00" * 20, "photo_format")])
def test_bytes_that_are_not_a_photo(data, code):
    with pytest.raises(InputError) as error:
        load_photo(data)
    assert error.value.code == code


def test_pixels_are_counted_from_the_header(tmp_path):
    path = tmp_path / "large.png"
    random_photo(100, 100).save(path)
    with pytest.raises(InputError, match="100 x 100 pixels, at most 9,999"):
        load_photo(path.read_bytes(), max_pixels=9_999)
    truncated = path.read_bytes()[:300]
    with pytest.raises(InputError) as error:
        load_photo(truncated)
    assert error.value.code == "photo_unreadable"
