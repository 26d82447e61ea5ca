"""Any photo -> the pixels that people see: one rule for preparation, training, prediction and serving. Without torch, so that it is quick.

What is refused is refused by the header, before a pixel is decoded.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from pixellm.errors import InputError
from pixellm.photo_headers import PhotoHeader, exif_orientation, read_header

MAX_16_BIT = 65535
DRAFT_MARGIN = 2  # decoded at a scale, a photo is still so many times as large as it is needed; Pillow's thumbnails do the same
BAND_ROWS = 256
_DECODERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile, "WEBP": WebPImagePlugin.WebPImageFile}
_TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
          5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}


@dataclass(frozen=True)
class PhotoLimits:
    """The largest photo that is decoded.

    50 megapixels are what phones and most cameras take, `max_side` is what a browser's canvas draws; at `max_aspect` the model, which sees
    the longer side as some hundred pixels, has about four left for the shorter one.
    """

    max_pixels: int = 50_000_000
    max_side: int = 32_767
    max_aspect: float = 100.0


DEFAULT_LIMITS = PhotoLimits()


def load_photo(data: bytes, limits: PhotoLimits = DEFAULT_LIMITS) -> Image.Image:
    """The photo in full, upright (EXIF) and RGB; of an animation, its first frame. Raises InputError like `decode_photo`."""
    return _decode(open_photo(data, limits), None)


def decode_photo(data: bytes, side: int, limits: PhotoLimits = DEFAULT_LIMITS) -> tuple[Image.Image, tuple[int, int]]:
    """A photo whose longer side is to become `side` pixels -> upright RGB, and the upright size (h, w) that it has in full.

    A JPEG that is at least 2 x `DRAFT_MARGIN` times as large is decoded at a half, a quarter or an eighth, by its DCT: the result is that
    much smaller. Raises InputError: those of `open_photo`, and `photo_unreadable` for pixels that are damaged or cut off.
    """
    header = open_photo(data, limits)
    return _decode(header, side), header.size_hw


def open_photo(data: bytes, limits: PhotoLimits = DEFAULT_LIMITS) -> PhotoHeader:
    """The header of a photo that may be decoded.

    Raises InputError: `photo_format`, `photo_unreadable`, `photo_too_complex` (see `read_header`), `photo_too_large` (pixels or a side
    above `limits`), `photo_aspect` (longer and narrower than `limits`).
    """
    header = read_header(data)
    height, width = header.stored_hw
    shown = f"the photo has {width} x {height} pixels"
    if not height or not width:
        raise InputError("photo_unreadable", shown)
    if width * height > limits.max_pixels:
        raise InputError("photo_too_large", f"{shown}, at most {limits.max_pixels:,} are allowed; make it smaller")
    if max(width, height) > limits.max_side:
        raise InputError("photo_too_large", f"{shown}, a side has at most {limits.max_side:,}; make it smaller or cut it up")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise InputError("photo_aspect", f"{shown}, one side at most {limits.max_aspect:g} times the other is allowed; cut it up")
    return header


def upright_rgb(photo: Image.Image) -> Image.Image:
    """Applies the EXIF orientation, then makes any mode RGB: transparency over white, 16 bits scaled to 8.

    Raises InputError `photo_mode` for pixels that have no known white (floating point, or integers beyond 16 bits).
    """
    return _to_rgb(_turned(photo, exif_orientation(photo.info.get("exif") or b"")))


def _decode(header: PhotoHeader, side: int | None) -> Image.Image:
    try:
        photo = _DECODERS[header.format](io.BytesIO(header.pixels))
        if (photo.height, photo.width) != header.stored_hw:
            raise ValueError(f"it has {photo.width} x {photo.height} pixels, its header says {header.stored_hw[::-1]}")
        if side is not None and header.format == "JPEG":
            scale = DRAFT_MARGIN * side / max(photo.size)
            photo.draft(None, (max(1, int(photo.width * scale)), max(1, int(photo.height * scale))))
        photo.load()
        return _to_rgb(_turned(photo, header.orientation))
    except Exception as error:  # damaged data can break a decoder in many ways: all of them are the photo's
        raise InputError("photo_unreadable", f"the photo cannot be decoded: {error}") from None


def _turned(photo: Image.Image, orientation: int) -> Image.Image:
    """Upright; without the EXIF block, so that it is not turned again."""
    if orientation not in _TURNS:
        return photo
    turned = photo.transpose(_TURNS[orientation])
    turned.info.pop("exif", None)
    return turned


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I"):
        return _sixteen_bits_to_rgb(photo)
    if photo.mode == "F":
        raise InputError("photo_mode", "the photo has floating-point pixels, whose white is not known; save it with 8 or 16 bits")
    if photo.has_transparency_data:
        return _over_white(photo)
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _over_white(photo: Image.Image) -> Image.Image:
    """In bands, which takes half of the memory: 0.4 GB for 50 megapixels."""
    page = Image.new("RGB", photo.size, "white")
    for top in range(0, photo.height, BAND_ROWS):
        band = photo.crop((0, top, photo.width, min(top + BAND_ROWS, photo.height))).convert("RGBA")
        page.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return page


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
