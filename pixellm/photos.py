"""Any photo -> the pixels that people see. Without torch, so that what only handles photos starts quickly."""

import numpy as np
from PIL import Image, ImageOps


def upright_rgb(photo: Image.Image) -> Image.Image:
    """Applies the EXIF orientation, then makes any mode RGB: transparency over white, 16 bits scaled to 8."""
    photo = ImageOps.exif_transpose(photo)
    if photo.mode == "RGB":
        return photo
    if photo.mode.startswith("I;16") or photo.mode == "I":
        return Image.fromarray((np.asarray(photo).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if photo.has_transparency_data:
        rgba = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return photo.convert("RGB")
