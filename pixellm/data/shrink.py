"""Photos larger than a limit, with their masks, to that limit: for datasets whose photos are far larger than any model looks at."""

import io

import numpy as np
from PIL import Image

from pixellm.data.schema import Region, Row, build_region, photo_set_aside, region_rle
from pixellm.masks import mask_to_rle, rle_to_mask
from pixellm.photos import load_photo, open_photo

QUALITY = 95  # of JPEG and WebP


def shrink_row(row: Row, max_side: int | None) -> Row:
    """`row`, or where its longer side is above `max_side` pixels a row of that size: an upright RGB photo in the same format, with masks.

    `row` has passed `validate_row`: a resized mask would fit any photo. A pixel of a smaller mask is on where at least half of its area
    was; of a mask with no such pixel, the one that has most of it stays, so no region gets lost. Raises RowError like `read_photo_info`.
    """
    if max_side is None or max(row["height"], row["width"]) <= max_side:
        return row
    scale = max_side / max(row["height"], row["width"])
    height, width = (max(1, round(row[side] * scale)) for side in ("height", "width"))
    with photo_set_aside():
        header, photo = open_photo(row["image"]), load_photo(row["image"])
    stream = io.BytesIO()
    profile = photo.info.get("icc_profile")
    profile = profile if profile and profile[16:20] == b"RGB " else None  # that of CMYK or grey would be wrong
    small = photo.resize((width, height), Image.Resampling.LANCZOS)
    small.save(stream, format=header.format, quality=QUALITY, icc_profile=profile)
    regions = [_shrink_region(region, (height, width)) for region in row["regions"]]
    return row | Row(image=stream.getvalue(), height=height, width=width, regions=regions)  # type: ignore[typeddict-item, return-value]


def _shrink_region(region: Region, size_hw: tuple[int, int]) -> Region:
    full = rle_to_mask(region_rle(region))
    mask = _box_resized(full.astype(np.uint8) * 255, size_hw) >= 128
    if not mask.any():
        share = _box_resized(full.astype(np.float32), size_hw)  # 8 bits may show nothing at all
        mask = np.zeros(size_hw, dtype=bool)
        mask[np.unravel_index(share.argmax(), size_hw)] = True
    return build_region(mask_to_rle(mask), region["category"], region["description"], region["ignore"])


def _box_resized(values: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(values).resize(size_hw[::-1], Image.Resampling.BOX))
