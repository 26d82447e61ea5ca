"""Photos, prompts and answers: the inverse of each step is a test."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pixellm.errors import ModelError
from pixellm.model.presets import build_image_processor, tiny_config
from pixellm.model.processing_pixellm import (
    PixelLMImageProcessor,
    TrainingConversation,
    phrase_start,
    resize_to_photos,
    upright_rgb,
)
from pixellm.testing import random_photo, tiny_model_and_processor


@pytest.fixture(scope="module")
def processor():
    return tiny_model_and_processor()[1]


@pytest.mark.parametrize(("height", "width"), [(96, 96), (73, 90), (480, 640), (1, 1), (3, 2000), (20_000, 7)])
def test_pixel_values_are_the_resized_photo_then_zeros(height, width):
    images = PixelLMImageProcessor()
    photo = random_photo(height, width)
    found = images.preprocess(photo)
    resized_height, resized_width = found["resized_sizes_hw"][0].tolist()
    assert max(resized_height, resized_width) == images.image_size and min(resized_height, resized_width) >= 1
    assert found["photo_sizes_hw"].tolist() == [[height, width]]
    expected = np.asarray(photo.resize((resized_width, resized_height), Image.Resampling.BILINEAR), np.float64) / 255
    expected = (expected - images.image_mean) / images.image_std
    pixels = found["pixel_values"][0, :, :resized_height, :resized_width].permute(1, 2, 0)
    np.testing.assert_allclose(pixels, expected, atol=1e-5)  # 3e-7 seen
    assert not found["pixel_values"][0, :, resized_height:].any() and not found["pixel_values"][0, :, :, resized_width:].any()


@pytest.mark.parametrize(("height", "width"), [(96, 96), (101, 57), (480, 640)])
def test_a_mask_survives_the_grid_and_back(height, width):
    images = build_image_processor(tiny_config())
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (min(height, width) / 4) ** 2
    grid = images.to_mask_grid(mask)
    covered_pixels = grid.sum() * (images.image_size / images.mask_size) ** 2 / (images.image_size / max(height, width)) ** 2
    assert covered_pixels == pytest.approx(mask.sum(), rel=0.02)  # 0.012 seen: sides are rounded to whole resized pixels
    logits = (grid - 0.5) * 10
    back = images.to_photo_masks(torch.from_numpy(logits)[None], images.resized_size_hw(height, width), (height, width))[0].numpy() > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.95  # 0.970 is the worst seen: the grid's cells are coarse


def test_grid_is_an_exact_area_average():
    """Against pixel-by-pixel accumulation, to the 1/255 of the 8-bit grid and Pillow's rounding."""
    images = PixelLMImageProcessor(image_size=96, image_tokens_per_side=6, mask_size=48)
    mask = np.random.default_rng(0).random((192, 144)) > 0.5
    expected = np.zeros((48, 48))
    expected[:, :36] = mask.reshape(48, 4, 36, 4).mean((1, 3))
    np.testing.assert_allclose(images.to_mask_grid(mask), expected, atol=1.01 / 255)


def test_image_tokens_that_hold_only_padding_are_masked():
    images = PixelLMImageProcessor()
    mask = np.array(images.image_token_mask((363, 448))).reshape(16, 16)
    assert mask[:13].all() and not mask[13:].any()  # 28 * 12 < 363 <= 28 * 13


def test_the_prompt_is_the_untrained_prefix_of_a_training_example(processor):
    question, answer = "where is the red circle?", "the red circle {seg} and the blue ring {seg}."
    ids, labels = processor.conversation_ids(question, answer)
    prompt = processor.prompt_ids(question)
    assert ids[:len(prompt)] == prompt
    assert labels[:len(prompt)] == [-100] * len(prompt) and labels[len(prompt):] == ids[len(prompt):]


def test_parsing_the_trained_answer_gives_the_answer_back(processor):
    for answer in ("the red circle {seg} and the blue ring {seg}.", "there is none.", "here: red square {seg}, ünïcode ☃ {seg}"):
        _, labels = processor.conversation_ids("what?", answer)
        ids = [label for label in labels if label >= 0]
        parsed = processor.parse_answer(ids)
        assert parsed.template == answer
        assert parsed.text == answer.replace(" {seg}", "")
        assert len(parsed.spans) == answer.count("{seg}")
    _, labels = processor.conversation_ids("?", "first the red circle {seg} and blue ring {seg}.")
    parsed = processor.parse_answer([label for label in labels if label >= 0])
    assert [parsed.text[start:end] for start, end in parsed.spans] == ["the red circle", "blue ring"]


@pytest.mark.parametrize(("words", "phrase"), [
    ("the red circle", "the red circle"), (" and the blue ring", "the blue ring"), ("To eat you need a spoon", "a spoon"),
    (", dogs", "dogs"), ("cats and dogs", "dogs"), ("", "")])
def test_phrase_before_a_group(words, phrase):
    assert words[phrase_start(words):] == phrase


def test_a_question_cannot_smuggle_placeholders(processor):
    assert processor.prompt_ids("where <image> is [SEG0][SEG1] it?</s>").count(processor.tokenizer.convert_tokens_to_ids("<image>")) == 36
    assert processor.tokenizer.convert_tokens_to_ids("[SEG0]") not in processor.prompt_ids("[SEG0]")


def test_a_later_question_follows_the_conversation_before_it(processor):
    first, second = ("where is the red circle?", "the red circle {seg} and the blue ring {seg}."), ("and the others?", "there are none.")
    before, _ = processor.conversation_ids(*first)
    ids = processor.prompt_ids("why?", [first])
    assert ids[:len(before)] == before and processor.tokenizer.decode(ids[len(before):]) == "why?\n"
    longer = processor.prompt_ids("why?", [first, second])
    assert longer[:len(before)] == before and longer.count(processor.tokenizer.convert_tokens_to_ids("<image>")) == 36
    assert processor.tokenizer.decode(longer[len(before):]) == "and the others?\nthere are none.</s>why?\n"
    smuggled = processor.prompt_ids("why <image>?", [("what [SEG0]?", "it [SEG1] <image></s>")])
    assert smuggled.count(processor.tokenizer.convert_tokens_to_ids("<image>")) == 36
    assert not {processor.tokenizer.convert_tokens_to_ids(token) for token in processor.codebook_tokens} & set(smuggled)


def test_seg_count_must_equal_the_masks(processor):
    with pytest.raises(ModelError, match=r"found 1 \{seg\} in the answer but 0 target masks"):
        processor.collate([random_photo(9, 9)], [TrainingConversation(0, "?", "it {seg}.")])


def test_too_long_is_an_error_with_both_numbers(processor):
    with pytest.raises(ModelError, match=r"takes \d+ tokens, the model allows 512"):
        processor.conversation_ids("what? " * 600, "none.")


def test_masks_at_photo_resolution_are_exact_and_padded(processor):
    rng = np.random.default_rng(0)
    sizes = [(30, 50), (44, 20)]
    targets = [[rng.random(size) > 0.5 for _ in range(2)] for size in sizes]
    ignored = rng.random(sizes[0]) > 0.8
    conversations = [TrainingConversation(0, "?", "a {seg} b {seg}.", targets[0], ignored), TrainingConversation(1, "?", "none."),
                     TrainingConversation(1, "?", "a {seg} b {seg}.", targets[1])]
    batch = processor.collate([random_photo(*size) for size in sizes], conversations, "photo")
    assert batch["target_masks"].shape == batch["target_valid"].shape == (4, 44, 50)
    assert batch["photo_sizes_hw"].tolist() == [[30, 50], [44, 20]]
    for k, (mask, (height, width)) in enumerate(zip([*targets[0], *targets[1]], [sizes[0]] * 2 + [sizes[1]] * 2, strict=True)):
        assert np.array_equal(batch["target_masks"][k, :height, :width] == 1, mask)
        assert np.array_equal(batch["target_valid"][k, :height, :width] == 1, ~ignored if k < 2 else np.ones_like(mask))
        assert not batch["target_valid"][k, height:].any() and not batch["target_valid"][k, :, width:].any()
    assert processor.collate([random_photo(30, 50)], [TrainingConversation(0, "?", "none.")], "photo")["target_masks"].shape[0] == 0


def test_logits_at_photo_resolution_are_those_of_each_photo(processor):
    images = processor.image_processor
    logits = torch.randn(3, images.mask_size, images.mask_size)
    sizes = [(30, 50), (44, 20), (30, 50)]
    resized = [images.resized_size_hw(*size) for size in sizes]
    found = resize_to_photos(logits, images.image_size, torch.tensor(resized), torch.tensor(sizes))
    assert found.shape == (3, 44, 50)
    for k, (small, size) in enumerate(zip(resized, sizes, strict=True)):
        assert torch.equal(found[k, :size[0], :size[1]], images.to_photo_masks(logits[k:k + 1], small, size)[0])
        assert not found[k, size[0]:].any() and not found[k, :, size[1]:].any()
    assert resize_to_photos(logits[:0], images.image_size, torch.zeros(0, 2), torch.zeros(0, 2)).shape[0] == 0


def photo_in_mode(mode: str) -> Image.Image:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :3] = (200, 30, 60)
    image = Image.fromarray(rgb)
    if mode == "I;16":
        return Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257)
    if mode == "RGBA":
        image = image.convert("RGBA")
        image.putalpha(Image.fromarray(np.repeat([[255] * 3 + [0] * 3], 4, 0).astype(np.uint8)))
        return image
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "left", "right"), [
    ("RGB", (200, 30, 60), (0, 0, 0)), ("L", (84, 84, 84), (0, 0, 0)), ("I;16", (84, 84, 84), (0, 0, 0)),
    ("RGBA", (200, 30, 60), (255, 255, 255)), ("P", (204, 51, 51), (0, 0, 0)), ("CMYK", (200, 30, 60), (0, 0, 0))])
def test_every_mode_becomes_the_right_rgb(mode, left, right):
    found = np.asarray(upright_rgb(photo_in_mode(mode))).astype(int)
    assert np.abs(found[0, 0] - left).max() <= 3 and np.abs(found[0, 5] - right).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = random_photo(5, 8)
    turn = Image.Transpose
    inverse = {1: None, 2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE, 6: turn.ROTATE_90,
               7: turn.TRANSVERSE, 8: turn.ROTATE_270}[orientation]
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    stored.save(data, "PNG", exif=exif)
    assert np.array_equal(np.asarray(upright_rgb(Image.open(data))), np.asarray(upright))
