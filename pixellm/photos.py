"""Any photo -> the pixels that people see. Without torch, so that what only handles photos starts quickly."""

import io

import numpy as np
from PIL import Image, ImageOps

from pixellm.errors import InputError

MAX_16_BIT = 65535
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange height and width
DRAFT_MARGIN = 2  # decoded at a scale, a photo is still so many times as large as it is needed; Pillow's thumbnails do the same


def decode_photo(data: bytes, side: int) -> tuple[Image.Image, tuple[int, int]]:
    """An encoded photo whose longer side is to become `side` pixels -> upright RGB, and the upright size (h, w) that it has in full.

    A JPEG that is at least 2 x `DRAFT_MARGIN` times as large is decoded at a half, a quarter or an eighth, by its DCT: the result is that
    much smaller. Raises what Pillow raises for a photo that it cannot read, and InputError like `upright_rgb`.
    """
    photo = Image.open(io.BytesIO(data))
    width, height = photo.size
    if photo.format == "JPEG":
        scale = DRAFT_MARGIN * side / max(width, height)
        photo.draft(None, (max(1, int(width * scale)), max(1, int(height * scale))))
    size_hw = (width, height) if photo.getexif().get(ORIENTATION) in TURNED else (height, width)
    return upright_rgb(photo), size_hw


def upright_rgb(photo: Image.Image) -> Image.Image:
    """Applies the EXIF orientation, then makes any mode RGB: transparency over white, 16 bits scaled to 8.

    Raises InputError `photo_mode` for pixels that have no known white (floating point, or integers beyond 16 bits).
    """
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I"):
        return _sixteen_bits_to_rgb(photo)
    if photo.mode == "F":
        raise InputError("photo_mode", "the photo has floating-point pixels, whose white is not known; save it with 8 or 16 bits")
    if photo.has_transparency_data:
        rgba = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _sixteen_bits_to_rgb(photo: Image.Image) -> Image.Image:
    """Modes I;16 and I, which Pillow would clip at 255 instead of scaling."""
    values = np.asarray(photo)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > MAX_16_BIT:
        raise InputError("photo_mode", f"the photo has values from {low} to {high}, expected 0 to {MAX_16_BIT}; save it with 8 or 16 bits")
    grey = (values // 257).astype(np.uint8)
    if "transparency" in photo.info:
        grey = np.where(values == photo.info["transparency"], np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")
