"""The forms in which masks leave: COCO RLE as it is, polygons, PNG, or one label map of all."""

import base64
import io
from typing import Literal

import numpy as np
from PIL import Image

from pixellm.contours import mask_to_polygons
from pixellm.masks import mask_to_png, rle_to_mask
from serve.schemas import Mask, SegmentResponse

MaskFormat = Literal["rle", "polygons", "png", "label_map"]


def to_format(mask: Mask, mask_format: MaskFormat) -> Mask:
    """A mask from a replica in the form that was asked for; in a label map it is only its value there."""
    if mask_format == "rle":
        return mask
    if mask_format == "label_map":
        return mask.model_copy(update={"segmentation": None})
    bitmap = rle_to_mask(mask.rle)
    form = mask_to_polygons(bitmap) if mask_format == "polygons" else base64.b64encode(mask_to_png(bitmap)).decode()
    return mask.model_copy(update={"segmentation": form})


def to_answer_format(answer: SegmentResponse, mask_format: MaskFormat) -> SegmentResponse:
    """An answer from a replica in the form that was asked for."""
    if mask_format == "rle":
        return answer
    label_map = to_label_map(answer) if mask_format == "label_map" else None
    return answer.model_copy(update={"masks": [to_format(mask, mask_format) for mask in answer.masks], "label_map": label_map})


def to_label_map(answer: SegmentResponse) -> str:
    """base64 of a grey PNG: 0 where there is no mask, else 1 + the index of the last mask there; of 16 bits for more than 255 masks."""
    labels = np.zeros(answer.size, dtype=np.uint8 if len(answer.masks) <= 255 else np.uint16)
    for index, mask in enumerate(answer.masks):
        labels[rle_to_mask(mask.rle)] = index + 1
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
