"""Photos that somebody sends: what is not one is refused before a pixel is decoded."""

import pytest

from pixellm.errors import InputError
from pixellm.inference.photos import load_photo
from pixellm.testing import random_photo


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
