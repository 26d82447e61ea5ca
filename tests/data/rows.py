"""Small rows and photos for the tests of the data folder."""

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from pixellm.data.schema import Conversation, Row, build_region
from pixellm.masks import mask_to_rle


def make_photo(height: int = 12, width: int = 16, image_format: str = "JPEG", orientation: int | None = None, seed: int = 0) -> bytes:
    """An encoded photo of noise; `height` and `width` are those of the stored pixels, before EXIF orientation."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=image_format, exif=exif)
    return stream.getvalue()


def make_row(index: int = 0, **changes: Any) -> Row:
    """A valid row: two regions, one question. `changes` replace columns."""
    left, right = np.zeros((2, 12, 16), dtype=bool)
    left[2:8, 1:6] = True
    right[4:10, 9:15] = True
    row = Row(
        image_id=str(index), source="test", split="train", image=make_photo(seed=index), height=12, width=16,
        regions=[build_region(mask_to_rle(left), "cat"), build_region(mask_to_rle(right), "dog", description="brown dog")],
        conversations=[Conversation(question="Who?", answer="The cat {seg} and the dog {seg}.", targets=[[0], [1]], task="reasoning")],
        license=None, url=None,
    )
    row.update(changes)  # type: ignore[typeddict-item]
    return row
