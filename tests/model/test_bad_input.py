"""Photos and conversations of unusual kinds: the right result or a clear error, never a wrong mask."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pixellm.errors import InputError, ModelError
from pixellm.model.processing_pixellm import TrainingConversation, upright_rgb
from pixellm.photos import load_photo
from pixellm.testing import random_photo, tiny_model_and_processor

MODEL_INPUTS = ("pixel_values", "resized_sizes_hw", "photo_index", "input_ids", "attention_mask")


@pytest.fixture(scope="module")
def tiny():
    return tiny_model_and_processor()


def write_png(values: np.ndarray, color_type: int, bit_depth: int, extra: bytes = b"") -> bytes:
    """A PNG of any depth, which Pillow does not write: (H, W, channels); `extra` are chunks before the pixels."""
    rows = b"".join(b"\0" + row.astype(">u2" if bit_depth == 16 else np.uint8).tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bit_depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6
RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16, 1) * 257


@pytest.mark.parametrize(("color_type", "channels"), [(GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGBA, 4)])
def test_sixteen_bit_png_is_scaled_in_every_colour_type(color_type, channels):
    values = np.repeat(RAMP, channels, 2)
    if color_type in (GREY_ALPHA, RGBA):
        values[..., -1] = 65535
    found = np.asarray(load_photo(write_png(values, color_type, 16)))
    assert np.array_equal(found, np.repeat(RAMP // 257, 3, 2)), "0 to 65535 becomes 0 to 255 in steps of 1"


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B"])
def test_sixteen_bit_modes_are_scaled_and_not_clipped(mode):
    dtype = {"I": np.int32, "I;16": "<u2", "I;16B": ">u2"}[mode]
    raw = RAMP[..., 0].astype(dtype)
    photo = Image.frombytes(mode, (16, 16), raw.tobytes())
    assert np.array_equal(np.asarray(upright_rgb(photo))[..., 0], RAMP[..., 0] // 257)


@pytest.mark.parametrize("values", [np.full((2, 2), 70_000, np.int32), np.full((2, 2), -1, np.int32), np.full((2, 2), 0.5, np.float32)])
def test_pixels_without_a_known_white_are_an_error(values):
    with pytest.raises(InputError, match="save it with 8 or 16 bits") as error:
        upright_rgb(Image.fromarray(values))
    assert error.value.code == "photo_mode"


@pytest.mark.parametrize(("color_type", "bit_depth", "pixel", "transparent"), [
    (GREY, 8, [7], struct.pack(">H", 7)), (GREY, 16, [7 * 257], struct.pack(">H", 7 * 257)),
    (RGB, 8, [7, 8, 9], struct.pack(">HHH", 7, 8, 9))])
def test_a_transparent_colour_is_white(color_type, bit_depth, pixel, transparent):
    values = np.zeros((2, 2, len(pixel)), np.uint16)
    values[0, 0] = pixel
    found = np.asarray(load_photo(write_png(values, color_type, bit_depth, chunk(b"tRNS", transparent))))
    assert found[0, 0].tolist() == [255, 255, 255] and not found[1].any()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_half_transparent_is_halfway_to_white(mode):
    photo = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    photo = photo.quantize(4) if mode == "P" else photo.convert(mode)
    assert photo.mode == mode
    found = np.asarray(upright_rgb(photo))
    assert found.shape == (4, 4, 3) and np.abs(found.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "1", "P"])
def test_other_modes_become_the_colour_they_show(mode):
    photo = Image.new("RGB", (4, 4), (255, 0, 0) if mode != "1" else (255, 255, 255)).convert(mode)
    data = io.BytesIO()
    if mode == "CMYK":
        photo.save(data, "JPEG", quality=100)
        photo = Image.open(data)
        assert photo.mode == "CMYK"
    expected = (255, 255, 255) if mode == "1" else (254, 0, 0) if mode == "YCbCr" else (255, 0, 0)
    assert np.abs(np.asarray(upright_rgb(photo)).astype(int) - expected).max() <= 2


def test_a_photo_with_broken_exif_is_not_turned():
    data = io.BytesIO()
    random_photo(8, 9).save(data, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\xff")
    assert load_photo(data.getvalue()).size == (9, 8), "it is taken as it lies"


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (20_000, 3), (7, 20_000), (900, 20_000)])
def test_photos_of_any_shape_get_masks_of_their_own_size(tiny, size_hw):
    model, processor = tiny
    mask = np.zeros(size_hw, bool)
    mask[:, : max(1, size_hw[1] // 2)] = True
    batch = processor.collate([random_photo(*size_hw)], [TrainingConversation(0, "where?", "there {seg}.", [mask])])
    with torch.no_grad():
        output = model(**{name: batch[name] for name in MODEL_INPUTS})
    assert output.mask_logits.isfinite().all() and output.logits.isfinite().all()
    images = processor.image_processor
    resized = images.resized_size_hw(*size_hw)
    photo_masks = images.to_photo_masks(output.mask_logits, resized, size_hw)
    assert photo_masks.shape == (1, *size_hw) and photo_masks.isfinite().all()
    cells = images.mask_size**2 * (resized[0] * resized[1]) / images.image_size**2
    share = float(batch["target_masks"][0].sum()) / cells
    assert share == pytest.approx(mask.mean(), abs=0.006)  # 0.0039 is the worst seen: cells have 8 bits


def test_a_photo_of_too_many_pixels_is_refused_before_it_is_decoded():
    """A header that promises 64 million pixels, and no pixels behind it."""
    header = struct.pack(">IIBBBBB", 8_000, 8_000, 8, GREY, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(InputError, match="8000 x 8000 pixels") as error:
        load_photo(data)
    assert error.value.code == "photo_too_large"


def test_masks_of_a_photo_that_was_not_turned_are_an_error(tiny):
    _, processor = tiny
    for masks, ignored in (([np.ones((9, 8), bool)], None), ([np.ones((8, 9), bool)], np.ones((9, 8), bool))):
        with pytest.raises(ModelError, match=r"a mask of \(9, 8\) \(h, w\) for an upright photo of \(8, 9\)"):
            processor.collate([random_photo(8, 9)], [TrainingConversation(0, "?", "it {seg}.", masks, ignored)])


def test_more_targets_than_fit_are_an_error_with_both_numbers(tiny):
    _, processor = tiny
    with pytest.raises(ModelError, match=r"takes \d+ tokens, the model allows 512"):
        processor.conversation_ids("where is everything?", "one {seg} " * 100 + ".")


def test_more_tokens_than_positions_are_an_error_in_the_model_too(tiny):
    model, _ = tiny
    ids = torch.full((1, 513), 5)
    ids[0, :model.config.num_image_tokens] = model.config.image_token_id
    with pytest.raises(ModelError, match="513 tokens, the language model has 512 positions"):
        model(torch.zeros(1, 3, 96, 96), torch.tensor([[96, 96]]), torch.tensor([0]), ids, torch.ones_like(ids))


def test_an_answer_cannot_smuggle_placeholders(tiny):
    _, processor = tiny
    ids, _ = processor.conversation_ids("where?", "the <image> ring {seg} [SEG1].")
    tokens = processor.tokenizer.convert_tokens_to_ids(["<image>", "[SEG1]"])
    assert [ids.count(token) for token in tokens] == [processor.num_image_tokens, 1]
