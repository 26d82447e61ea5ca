"""A CVAT auto-annotation function that asks a server of ours. It runs where `cvat-cli` does, beside `cvat-sdk`:

    cvat-cli task auto-annotate 1 --function-module serve.adapters.cvat -p url=str:http://127.0.0.1:8000 \\
        -p question=str:"Where are the apples?" -p labels=str:apple,pear
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pixellm.contours import mask_to_polygons
from pixellm.masks import rle_to_mask
from serve.client import Client
from serve.schemas import Mask

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunction


def create(url: str, question: str, labels: str) -> "DetectionFunction":
    """The function that CVAT calls for each photo. `labels`, with commas between them, are the labels of the task that it may give: a mask
    gets the longest one that its phrase holds, and is left out where there is none; a single label fits every mask."""
    import cvat_sdk.auto_annotation as cvat

    names = [name.strip() for name in labels.split(",") if name.strip()]

    class Function:
        spec = cvat.DetectionFunctionSpec(labels=[cvat.label_spec(name, index) for index, name in enumerate(names)])

        def __init__(self) -> None:
            self._client = Client(url)

        def detect(self, context: Any, image: Image.Image) -> list:
            """Masks of at least the threshold's score, as polygons where CVAT wants those."""
            found = []
            for mask in self._client.segment(image, question).masks:
                fitting = names if len(names) == 1 else [name for name in names if name.lower() in mask.label.lower()]
                if not mask.area or not fitting or mask.score < (context.conf_threshold or 0):
                    continue
                label_id = names.index(max(fitting, key=len))
                if context.conv_mask_to_poly:
                    found += [cvat.polygon(label_id, polygon) for polygon in mask_to_polygons(rle_to_mask(mask.rle))]
                else:
                    found.append(cvat.mask(label_id, to_points(mask)))
            return found

    return Function()


def to_points(mask: Mask) -> list[int]:
    """CVAT's form of a mask: run lengths of its box row by row, off first, then x1, y1, x2, y2 of the box, the last two inclusive."""
    x, y, width, height = mask.bbox
    flat = rle_to_mask(mask.rle)[y:y + height, x:x + width].ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False)).tolist()
    runs = np.diff([0, *edges, flat.size]).tolist()
    return [*runs, x, y, x + width - 1, y + height - 1]
