"""Encoded masks are those of full-size float maps, without the maps."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pixellm.inference.mask_encoder import encode_mask
from pixellm.masks import mask_to_rle, rle_area, rle_box_xywh, rle_to_mask
from pixellm.model.processing_pixellm import PixelLMImageProcessor
from tests.conftest import ROOT

SIDES = [1, 2, 7, 50, 96, 300, 447, 448, 640, 901, 1500]


def random_logits(size: int, detail: int, offset: float) -> torch.Tensor:
    """Smooth (detail 1 is one value) to noisy (detail `size`)."""
    return F.interpolate(5 * torch.randn(1, 1, detail, detail) + offset, (size, size), mode="bicubic")[0, 0]


@pytest.mark.parametrize("seed", range(60))
def test_same_as_full_size_maps(seed):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    image_size, mask_size = ((448, 128), (96, 48))[seed % 2]
    processor = PixelLMImageProcessor(image_size=image_size, mask_size=mask_size)
    photo_size_hw = (int(rng.choice(SIDES)), int(rng.choice(SIDES)))
    resized_size_hw = processor.resized_size_hw(*photo_size_hw)
    logits = random_logits(mask_size, int(rng.choice([1, 5, 14, mask_size])), float(rng.choice([-8, -2, 0, 2])))
    photo_logits = processor.to_photo_masks(logits[None], resized_size_hw, photo_size_hw)[0]
    expected = photo_logits > 0
    encoded = encode_mask(logits, processor, resized_size_hw, photo_size_hw)
    different = rle_to_mask(encoded.rle) != expected.numpy()
    # No pixel differed in 150 draws; where rounding decides, either is right.
    assert not different.any() or photo_logits.abs().numpy()[different].max() < 1e-5
    assert encoded.rle["counts"] == mask_to_rle(rle_to_mask(encoded.rle))["counts"]
    assert (encoded.area, encoded.box_xywh) == (rle_area(encoded.rle), rle_box_xywh(encoded.rle))
    score = float((photo_logits.sigmoid() * expected).sum() / (expected.sum() + 1e-6))
    assert encoded.score == pytest.approx(score, abs=1e-5)  # 1.5e-7 seen in 150 draws


def test_nothing_is_on():
    encoded = encode_mask(torch.full((128, 128), -1.0), PixelLMImageProcessor(), (448, 300), (900, 603))
    assert (encoded.score, encoded.box_xywh, encoded.area) == (0.0, [0, 0, 0, 0], 0) and encoded.rle["size"] == [900, 603]


MEMORY = """
import torch
from pixellm.inference.mask_decoder import MaskDecoder
from pixellm.inference.mask_encoder import encode_mask
from pixellm.model.processing_pixellm import PixelLMImageProcessor
from tests.inference.test_mask_decoder import build_mask_head, random_inputs

def peak_mb():  # not ru_maxrss: a child starts with its parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

torch.set_num_threads(1)
head = build_mask_head(32, 256, decoder_num_heads=8, decoder_mlp_size=2048, mask_channels=32)
features, states = random_inputs(head, 1, 100)
before_mb = peak_mb()
decoder, processor = MaskDecoder(head), PixelLMImageProcessor()
mask_logits = decoder.decode([decoder.prepare([scale[0] for scale in features])], [0] * 100, states)
masks = [encode_mask(logits, processor, (336, 448), (3000, 4000)) for logits in mask_logits]
assert sum(mask.area > 0 for mask in masks) > 50
print(peak_mb() - before_mb)
before_mb = peak_mb()
logits = torch.full((128, 128), -1.0)
logits[60:63] = 5.0  # a band across a strip of 39 megapixels
for size_hw in ((39_000_000, 1), (1, 39_000_000)):
    strip = encode_mask(logits if size_hw[1] == 1 else logits.T, processor, processor.resized_size_hw(*size_hw), size_hw)
    assert 200_000 < strip.area < 2_000_000 and strip.rle["size"] == list(size_hw)
print(peak_mb() - before_mb)
"""


def test_memory_is_that_of_the_masks_boxes():
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    of_a_hundred_mb, of_strips_mb = map(float, done.stdout.split())
    assert of_a_hundred_mb < 1024  # 160 MB seen
    assert of_strips_mb < 100  # 0 seen here, 158 in a fresh process; with the whole of each side 1,110
