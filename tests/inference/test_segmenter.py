"""The friendly face: sentences with spans and masks of the photo's size, alone, in lists and as a stream."""

import asyncio
import time

import pytest
import torch
from PIL import Image

from pixellm.errors import DeadlineError, InputError
from pixellm.inference.config import AnswerOptions, EngineConfig
from pixellm.inference.requests import PhotoInput, Request
from pixellm.inference.segmentation import Segmentation, Target, TextDelta
from pixellm.inference.segmenter import Segmenter
from pixellm.masks import rle_to_mask
from pixellm.model.processing_pixellm import resize_to_photo
from pixellm.testing import generate_alone, random_photo
from tests.inference.models import QUESTIONS, SIZES_HW, photo_inputs, photos


@pytest.fixture(scope="module")
def segmenter(speaking):
    return Segmenter(*speaking, EngineConfig(num_slots=3))


@pytest.fixture(scope="module")
def results(segmenter):
    return segmenter.segment(photos(), QUESTIONS, max_new_tokens=40)


def assert_same_targets(found, expected):
    """Phrases and spans are equal; pixels may differ where a logit is nearly 0, which is common in the noise of random weights."""
    for one, other in zip(found, expected, strict=True):
        differing = (rle_to_mask(one.rle) != rle_to_mask(other.rle)).sum()
        assert (one.phrase, one.span) == (other.phrase, other.span)
        assert differing <= 3 and abs(one.score - other.score) < 1e-3  # 1 pixel and 4e-5 seen


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.answer, one.finish_reason, one.num_tokens, one.size_hw) == (
            other.text, other.answer, other.finish_reason, other.num_tokens, other.size_hw)
        assert_same_targets(one.targets, other.targets)


def test_segmentations_have_masks_of_the_photos_size(results):
    assert any(result.targets for result in results)
    for result, size_hw in zip(results, SIZES_HW, strict=True):
        assert result.size_hw == size_hw and result.answer.count("{seg}") == len(result.targets)
        for target in result.targets:
            mask = rle_to_mask(target.rle)
            assert mask.shape == size_hw and mask.sum() == target.area
            assert result.text[slice(*target.span)] == target.phrase and 0 <= target.score <= 1


def test_answers_are_those_of_one_by_one_generation(speaking, results):
    """Masks at the photo's size may differ where a logit is within the tolerance of 0, and nowhere else."""
    model, processor = speaking
    for photo, question, result in zip(photo_inputs(processor), QUESTIONS, results, strict=True):
        request = Request(photo, processor.prompt_ids(question), 40, frozenset([processor.tokenizer.eos_token_id]))
        answer, mask_logits = generate_alone(model, request)
        assert result.text == processor.parse_answer(answer.token_ids).text and len(result.targets) == len(mask_logits)
        for target, logits in zip(result.targets, mask_logits, strict=True):
            photo_logits = processor.image_processor.to_photo_masks(logits[None], photo.resized_size_hw, photo.photo_size_hw)[0]
            is_sure = (photo_logits.abs() > 1e-4).numpy()  # 5e-6 is the largest difference seen
            on = (photo_logits > 0).numpy()
            assert (rle_to_mask(target.rle) == on)[is_sure].all() and is_sure.mean() > 0.99
            assert abs(target.score - float(photo_logits.sigmoid().numpy()[on].sum() / (on.sum() + 1e-6))) < 1e-4  # 3e-7 seen


@torch.inference_mode()
def test_forced_answers_are_fed_and_their_masks_are_those_of_one_pass(segmenter):
    """The reference feeds the whole conversation at once, as training does."""
    answers = ["the red circle {seg} and the blue ring {seg}.", "there is none.", "the green square {seg}."]
    images, questions = photos()[:3], QUESTIONS[:3]
    found = segmenter.segment(images, questions, 5, forced_answers=answers)
    model, processor = segmenter.model, segmenter.processor
    for image, question, answer, result in zip(images, questions, answers, found, strict=True):
        assert (result.answer, result.finish_reason) == (answer, "stop")
        photo = PhotoInput.from_image(image, processor.image_processor)
        ids = torch.tensor([processor.conversation_ids(question, answer)[0]])
        seen = torch.ones_like(ids)
        seen[ids == model.config.image_token_id] = torch.tensor(photo.image_token_mask)
        whole = model(photo.pixel_values[None], torch.tensor([photo.resized_size_hw]), torch.tensor([0]), ids, seen)
        logits = resize_to_photo(whole.mask_logits, processor.image_processor.image_size, photo.resized_size_hw, photo.photo_size_hw)
        assert len(logits) == len(result.targets)
        for target, expected in zip(result.targets, logits > 0, strict=True):
            assert (rle_to_mask(target.rle) != expected.numpy()).sum() <= 3  # 0 seen


def test_one_image_and_question_give_one_answer(segmenter, results):
    assert_same([segmenter.segment(photos()[2], QUESTIONS[2], max_new_tokens=40)], results[2:3])


def test_more_questions_than_slots_keep_their_order(segmenter, results):
    assert_same(segmenter.segment(photos() * 5, QUESTIONS * 5, max_new_tokens=40), results * 5)


def test_one_vision_pass_for_each_distinct_photo(speaking, monkeypatch):
    model, processor = speaking
    segmenter, seen = Segmenter(model, processor), []
    encode = type(model).encode_photos
    monkeypatch.setattr(type(model), "encode_photos", lambda *args: (seen.append(len(args[1])), encode(*args))[1])
    photo, other = random_photo(96, 96), random_photo(50, 96, seed=1)
    segmenter.segment([photo, other, photo.copy(), photo], QUESTIONS, max_new_tokens=4)
    segmenter.segment([photo], ["again?"], max_new_tokens=4)
    assert sum(seen) == 2


def test_a_stream_adds_up_to_the_answer(segmenter, results):
    for photo, question, result in zip(photos(), QUESTIONS, results, strict=True):
        *items, last = segmenter.segment_stream(photo, question, max_new_tokens=40)
        assert_same([last], [result])
        assert "".join(item.text for item in items if isinstance(item, TextDelta)) == result.text
        assert [item for item in items if isinstance(item, Target)] == last.targets
        assert not any(isinstance(item, Segmentation) for item in items)


def test_a_stream_that_is_left_frees_its_slot(segmenter):
    for _ in range(5):  # more than there are slots
        next(iter(stream := segmenter.segment_stream(photos()[0], QUESTIONS[0], max_new_tokens=200)))
        stream.close()
    assert len(segmenter.segment(photos()[:1], QUESTIONS[:1], max_new_tokens=2)) == 1


def test_a_stop_string_ends_the_answer_before_it(segmenter, results):
    whole = results[0].text
    stop = whole[len(whole) // 2:][:3]
    options = AnswerOptions(stop=(stop, "never said"))
    cut = segmenter.segment(photos()[0], QUESTIONS[0], 40, options)
    assert cut.finish_reason == "stop" and stop not in cut.answer.rpartition("{seg}")[2]
    assert whole.startswith(cut.text) and whole[len(cut.text):].startswith(stop)
    assert_same_targets(cut.targets, results[0].targets[:len(cut.targets)])
    *items, last = segmenter.segment_stream(photos()[0], QUESTIONS[0], 40, options)
    assert_same([last], [cut])
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == cut.text


def test_a_limit_of_targets_ends_the_answer(segmenter, results):
    index = max(range(4), key=lambda index: len(results[index].targets))
    for limit in range(len(results[index].targets)):
        limited = segmenter.segment(photos()[index], QUESTIONS[index], 40, AnswerOptions(max_targets=limit))
        assert limited.finish_reason == "max_targets"
        assert_same_targets(limited.targets, results[index].targets[:limit])


def test_a_seed_draws_the_same_answer_in_any_company(segmenter):
    options = AnswerOptions(temperature=0.9, top_p=0.95, seed=5)
    alone = [segmenter.segment(photo, question, 24, options) for photo, question in zip(photos(), QUESTIONS, strict=True)]
    assert_same(segmenter.segment(photos(), QUESTIONS, 24, options), alone)
    other = segmenter.segment(photos(), QUESTIONS, 24, AnswerOptions(temperature=0.9, top_p=0.95, seed=6))
    assert [answer.text for answer in other] != [answer.text for answer in alone]


def test_a_coroutine_gets_the_same_parts(segmenter, results):
    async def gather(photo, question, with_parts):
        return [part async for part in segmenter.answer_async(segmenter.prepare_photo(photo), question, 40, with_parts=with_parts)]

    async def run():
        return await asyncio.gather(*(gather(photo, question, with_parts) for with_parts in (True, False)
                                      for photo, question in zip(photos(), QUESTIONS, strict=True)))

    found = asyncio.run(run())
    assert [len(parts) for parts in found[len(results):]] == [1] * len(results)
    assert_same([parts[-1] for parts in found], [*results, *results])
    for parts, result in zip(found, results, strict=False):
        assert "".join(part.text for part in parts if isinstance(part, TextDelta)) == result.text
        assert_same_targets([part for part in parts if isinstance(part, Target)], result.targets)


def test_a_coroutine_that_leaves_ends_its_request(segmenter):
    async def run():
        parts = segmenter.answer_async(segmenter.prepare_photo(photos()[0]), QUESTIONS[0], 40)
        await anext(parts)
        await parts.aclose()
        with pytest.raises(InputError):
            await anext(segmenter.answer_async(segmenter.prepare_photo(photos()[0]), " "))

    asyncio.run(run())
    deadline = time.monotonic() + 30
    while not segmenter._engine._loop.stepper.is_idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("question", "max_new_tokens", "options", "code"), [
    ("  ", 4, AnswerOptions(), "question_empty"),
    ("what?", 500, AnswerOptions(), "prompt_too_long"),
    ("what? " * 300, 4, AnswerOptions(), "prompt_too_long"),
    ("what?", 0, AnswerOptions(), "max_new_tokens_invalid"),
    ("what?", 4, AnswerOptions(temperature=-1.0), "temperature_invalid"),
    ("what?", 4, AnswerOptions(temperature=1.0, top_p=0.0), "top_p_invalid"),
    ("what?", 4, AnswerOptions(max_targets=-1), "max_targets_invalid"),
    ("what?", 4, AnswerOptions(stop=("end", "")), "stop_invalid"),
])
def test_bad_questions_are_clear_errors(segmenter, question, max_new_tokens, options, code):
    with pytest.raises(InputError) as error:
        segmenter.segment([random_photo(9, 9)] * 2, ["fine?", question], max_new_tokens, options)
    assert error.value.code == code
    assert len(segmenter.segment([random_photo(9, 9)], ["fine?"], 2)) == 1


def test_an_answer_that_is_late_is_a_clear_error(segmenter):
    with pytest.raises(DeadlineError, match="not complete in time"):
        segmenter.segment(photos()[0], "what?", 200, AnswerOptions(timeout_s=0.0))


@pytest.mark.parametrize("image", [
    Image.new("RGB", (1, 1), "red"), Image.new("RGB", (3000, 1)), Image.new("RGB", (1, 3000)), Image.new("CMYK", (40, 30)),
    Image.new("P", (40, 30)), Image.new("I;16", (40, 30)), Image.new("RGBA", (40, 30), (9, 9, 9, 0)), Image.new("1", (40, 30)),
    Image.new("LA", (40, 30)),
], ids=lambda image: f"{image.mode}-{image.width}x{image.height}")
def test_odd_photos_are_answered(segmenter, image):
    answers = segmenter.segment([image, photos()[0]], QUESTIONS[:2], max_new_tokens=24)
    assert answers[0].size_hw == (image.height, image.width)
    assert all(rle_to_mask(target.rle).shape == answer.size_hw for answer in answers for target in answer.targets)


def test_a_photo_without_a_known_white_is_refused_and_costs_nobody_else_anything(segmenter, results):
    beside = segmenter.segment_stream(photos()[0], QUESTIONS[0], 40)
    first = next(beside)  # under way
    with pytest.raises(InputError) as error:
        segmenter.segment(Image.new("F", (40, 30)), QUESTIONS[0], 4)
    assert error.value.code == "photo_mode"
    *_, last = first, *beside
    assert_same([last], results[:1])
