"""Bytes that somebody sent -> a photo: format and size are checked from the header before a pixel is decoded."""

import io

from PIL import Image, UnidentifiedImageError

from pixellm.errors import InputError
from pixellm.photos import upright_rgb

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000


def load_photo(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns the photo upright (EXIF) and RGB; of an animation, its first frame.

    Raises InputError: `photo_format` (not JPEG, PNG or WebP), `photo_too_large` (more than `max_pixels`), `photo_unreadable`.
    """
    try:
        photo = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError("photo_format", f"the {len(data)} bytes are not a photo in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # a header can break a parser in many ways: all of them are the sender's
        raise InputError("photo_unreadable", f"the photo's header cannot be read: {error}") from None
    if photo.width * photo.height > max_pixels:
        raise InputError("photo_too_large", f"the photo has {photo.width} x {photo.height} pixels, at most {max_pixels:,} are allowed")
    try:
        return upright_rgb(photo)
    except Exception as error:
        raise InputError("photo_unreadable", f"the photo cannot be decoded: {error}") from None
