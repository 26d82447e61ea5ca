"""Which library decodes a JPEG and brings it to the model's size in the least CPU time, for photos of two sizes."""

import io
import time
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from jobs.benchmarks.data_photos import draw_photo
from jobs.benchmarks.result import Case
from pixellm.photos import decode_photo, upright_rgb

SIZES_HW = ((480, 640), (1800, 2400))
NUM_PHOTOS = 8


def _by_pillow(data: bytes, side: int) -> Image.Image:
    return upright_rgb(Image.open(io.BytesIO(data)))


def _by_decode_photo(data: bytes, side: int) -> Image.Image:
    return decode_photo(data, side)[0]


def decoders() -> dict[str, Callable[[bytes, int], Image.Image]]:
    """Those that are installed: (encoded photo, side that it is needed at) -> RGB."""
    found: dict[str, Callable[[bytes, int], Image.Image]] = {"Pillow": _by_pillow, "decode_photo": _by_decode_photo}
    try:
        import simplejpeg  # libjpeg-turbo of its own; not needed for anything else
    except ImportError:
        return found
    return found | {"simplejpeg": lambda data, side: Image.fromarray(simplejpeg.decode_jpeg(data)),
                    "simplejpeg at a scale": lambda data, side: Image.fromarray(
                        simplejpeg.decode_jpeg(data, min_width=2 * side, min_height=2 * side))}


def measure_decoders(side: int, repeats: int, sizes_hw: Sequence[tuple[int, int]] = SIZES_HW) -> list[Case]:
    """Milliseconds of CPU time a photo, decoded and resized (bilinear) to the longer side `side`. All take turns."""
    cases = []
    for height, width in sizes_hw:
        photos = [draw_photo((height, width), seed) for seed in range(NUM_PHOTOS)]
        size = (side, round(side * height / width))
        times: dict[str, list[float]] = {name: [] for name in decoders()}
        for _ in range(repeats + 1):
            for name, decode in decoders().items():
                began = time.process_time()
                for photo in photos:
                    np.asarray(decode(photo, side).resize(size, Image.Resampling.BILINEAR))
                times[name].append(1000 * (time.process_time() - began) / NUM_PHOTOS)
        cases += [Case(f"decode {width} x {height}, {name}", "ms/image", tuple(values[1:])) for name, values in times.items()]
    return cases
