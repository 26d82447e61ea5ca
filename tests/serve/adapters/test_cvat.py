"""CVAT's auto-annotation function, as `cvat-sdk` calls it, and its form of a mask by hand."""

import io
import types

import numpy as np
from cvat_sdk import auto_annotation, masks
from PIL import Image

from pixellm.masks import mask_to_rle, rle_area, rle_box_xywh
from serve.adapters import cvat
from serve.schemas import Mask, Rle


def mask_of(bitmap: np.ndarray) -> Mask:
    rle = mask_to_rle(bitmap)
    return Mask(id="mask_0", label="", span=(0, 0), score=1, bbox=tuple(rle_box_xywh(rle)), area=rle_area(rle), color="#000000",
                segmentation=Rle(**rle))


def bitmaps():
    rng = np.random.default_rng(0)
    return [bitmap for bitmap in (rng.random(rng.integers(1, 9, 2)) < 0.5 for _ in range(50)) if bitmap.any()]


def test_run_lengths_of_the_box_give_the_mask_back():
    for bitmap in bitmaps():
        *runs, x1, y1, x2, y2 = cvat.to_points(mask_of(bitmap))
        box = (np.repeat(np.arange(len(runs)) % 2, runs) == 1).reshape(y2 - y1 + 1, x2 - x1 + 1)
        found = np.zeros_like(bitmap)
        found[y1:y2 + 1, x1:x2 + 1] = box
        assert (found == bitmap).all()


def test_the_function_as_cvat_calls_it(server):
    for bitmap in bitmaps():
        assert cvat.to_points(mask_of(bitmap)) == masks.encode_mask(bitmap)
    photo = Image.new("RGB", (40, 20))

    def detect(labels, conf_threshold=None, conv_mask_to_poly=False):
        context = types.SimpleNamespace(frame_name="a.png", conf_threshold=conf_threshold, conv_mask_to_poly=conv_mask_to_poly)
        function = cvat.create(server, "Which half?", labels)
        assert isinstance(function.spec, auto_annotation.DetectionFunctionSpec)
        return function.detect(context, photo)

    whole = masks.encode_mask(np.broadcast_to(np.arange(40) < 20, (20, 40)))
    (found,) = detect("half, left half ,pear")
    assert (found.type.value, found.label_id, found.points, found.frame) == ("mask", 1, whole, 0)
    assert [each.label_id for each in detect("thing")] == [0]
    assert detect("apple,pear") == [] and detect("half", 0.9) == []
    (polygon,) = detect("half", conv_mask_to_poly=True)
    assert (polygon.type.value, polygon.points) == ("polygon", [0, 0, 20, 0, 20, 20, 0, 20])


def test_a_photo_is_sent_as_its_file_shows_it(server):
    """Turned by EXIF, in print colours, in 16 bits: the mask is of the upright photo."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("CMYK", (20, 40)).save(data, "JPEG", exif=exif)
    context = types.SimpleNamespace(frame_name="a.jpg", conf_threshold=None, conv_mask_to_poly=False)
    left_half = masks.encode_mask(np.broadcast_to(np.arange(40) < 20, (20, 40)))
    for photo in (Image.open(data), Image.new("I;16", (40, 20), 40_000), Image.new("LA", (40, 20))):
        (found,) = cvat.create(server, "Which half?", "thing").detect(context, photo)
        assert found.points == left_half
