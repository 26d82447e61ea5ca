"""Photos that somebody sends: what is not one is refused before a pixel is decoded."""

import io

import pytest
from PIL import Image

from pixellm.errors import InputError
from pixellm.photos import PhotoLimits, load_photo
from pixellm.testing import random_photo


@pytest.mark.parametrize(("data", "code"), [
    (b"", "photo_format"), (b"GIF89a", "photo_format"), (b"\xff\xd8\xff\xe0 nothing", "photo_unreadable"),
    (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"\x00" * 20, "photo_unreadable")])
def test_bytes_that_are_not_a_photo(data, code):
    with pytest.raises(InputError) as error:
        load_photo(data)
    assert error.value.code == code


def test_pixels_are_counted_from_the_header(tmp_path):
    path = tmp_path / "large.png"
    random_photo(100, 100).save(path)
    with pytest.raises(InputError, match="100 x 100 pixels, at most 9,999"):
        load_photo(path.read_bytes(), PhotoLimits(max_pixels=9_999))
    truncated = path.read_bytes()[:300]
    with pytest.raises(InputError) as error:
        load_photo(truncated)
    assert error.value.code == "photo_unreadable"


@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format_name):
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue", "lime")]
    data = io.BytesIO()
    frames[0].save(data, format_name, save_all=True, append_images=frames[1:], lossless=True, duration=40)
    assert getattr(Image.open(io.BytesIO(data.getvalue())), "n_frames", 1) == 3
    photo = load_photo(data.getvalue())
    assert photo.size == (20, 10) and photo.getcolors() == [(200, (255, 0, 0))]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(orientation):
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    photo = Image.new("RGB", (40, 20), "blue")
    photo.paste("red", (0, 0, 8, 8))
    photo.save(data, "PNG", exif=exif)
    upright = load_photo(data.getvalue())
    assert upright.size == ((40, 20) if orientation < 5 else (20, 40))
    # where EXIF says that the stored first row and column are: the red corner goes there
    right, bottom = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    assert upright.getpixel((right * (upright.width - 1), bottom * (upright.height - 1))) == (255, 0, 0)
