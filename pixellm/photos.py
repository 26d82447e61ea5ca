"""Any photo -> the pixels that people see. Without torch, so that what only handles photos starts quickly."""

import numpy as np
from PIL import Image, ImageOps

from pixellm.errors import InputError

MAX_16_BIT = 65535


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
