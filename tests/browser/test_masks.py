"""Masks on the page: the same pixels as the server's, in the right place, lit from both sides, saved as they are seen."""

import io
import json
from itertools import product

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pixellm.drawing import color_of
from pixellm.masks import mask_to_rle
from pixellm.photos import PhotoLimits, load_photo, upright_rgb
from pixellm.testing import random_photo
from serve.limits import decode_base64
from tests.browser.actions import ask_to_the_end, choose_photo, lit_masks, painted, point_at, saved, to_image
from tests.browser.doubles import halves_and_disc

LEFT, DISC, RIGHT = "mask_0", "mask_1", "mask_2"


def decode(page, rles: list[dict]) -> list[np.ndarray]:
    """The masks in the page's own eyes: by the bitmap, and the same pixel by pixel."""
    drawn = page.evaluate("""async (rles) => {
        const {decodeRle, resample, covers} = await import('/web/rle.js');
        return rles.map((rle) => {
            const mask = decodeRle(rle), bitmap = resample(mask, mask.width, mask.height);
            const differs = bitmap.findIndex((bit, at) => covers(mask, at % mask.width, Math.floor(at / mask.width)) !== Boolean(bit));
            if (differs >= 0) throw new Error(`bitmap and pixel differ at ${differs}`);
            return [...bitmap].join('');
        });
    }""", rles)
    return [np.array(list(bits), dtype="u1").reshape(rle["size"]) > 0 for bits, rle in zip(drawn, rles, strict=True)]


@pytest.fixture
def asked(page):
    choose_photo(page)
    ask_to_the_end(page)
    return page


def test_masks_are_decoded_as_pycocotools_encodes_them(page):
    rng = np.random.default_rng(7)
    masks = [rng.random(rng.integers(1, 40, 2)) < share for share in rng.random(200)]
    masks += [np.zeros((3, 5), dtype=bool), np.ones((3, 5), dtype=bool), np.eye(9, dtype=bool)]
    large = np.zeros((700, 900), dtype=bool)  # runs of more than 2**15 pixels, and differences between runs below zero
    large[:, 300:400] = large[350, 850:] = True
    for mask, decoded in zip([*masks, large], decode(page, [mask_to_rle(mask) for mask in [*masks, large]]), strict=True):
        assert (decoded == mask).all()


def test_counts_of_another_size_are_refused(page):
    with pytest.raises(Exception, match="cover 12 pixels, expected 4 x 4"):
        decode(page, [{"size": [4, 4], "counts": mask_to_rle(np.zeros((3, 4), dtype=bool))["counts"]}])


def test_a_phrase_lights_its_mask_and_a_mask_its_phrase(asked):
    page = asked
    assert lit_masks(page) == set()
    plain = painted(page, 0.9, 0.9)
    page.get_by_role("button", name="a disc", exact=True).hover()
    assert lit_masks(page) == {DISC}
    assert painted(page, 0.9, 0.9) != plain, "the rest does not lie in the shade"
    page.locator(".switch").nth(2).focus()
    page.mouse.move(1, 1)
    for place, mask in (((0.1, 0.5), LEFT), ((0.9, 0.5), RIGHT), ((0.45, 0.5), DISC), ((0.55, 0.5), DISC)):
        point_at(page, *place)
        assert lit_masks(page) == {mask}
    page.mouse.move(1, 1)
    assert lit_masks(page) == set()


def test_a_pressed_mask_stays_lit_until_escape(asked):
    page = asked
    point_at(page, 0.1, 0.5, press=True)
    page.mouse.move(1, 1)
    assert lit_masks(page) == {LEFT}
    page.keyboard.press("Escape")
    assert lit_masks(page) == set()


def test_masks_can_be_switched_off_and_made_lighter(asked):
    page = asked
    strong = painted(page, 0.1, 0.5)
    page.fill("#opacity", "20")
    weak = painted(page, 0.1, 0.5)
    assert abs(strong[3] - 0.5 * 255) <= 1 and abs(weak[3] - 0.2 * 255) <= 1
    switch = page.locator(".switch").first
    switch.click()
    assert switch.get_attribute("aria-pressed") == "false"
    assert painted(page, 0.1, 0.5)[3] == 0
    point_at(page, 0.1, 0.5)
    assert lit_masks(page) == set(), "a mask that is off is under the pointer"
    switch.click()
    page.mouse.move(1, 1)
    assert painted(page, 0.1, 0.5) == weak


def test_an_earlier_answer_shows_its_masks_again(asked):
    page = asked
    ask_to_the_end(page, "echo something else")
    assert painted(page, 0.9, 0.9)[3] == 0  # an echo has the left half only
    page.locator(".phrase", has_text="the right half").hover()
    assert painted(page, 0.9, 0.5)[3] > 0
    page.mouse.move(1, 1)
    assert painted(page, 0.9, 0.9)[3] == 0
    page.locator(".question").first.click()
    assert painted(page, 0.9, 0.9)[3] > 0


def test_what_is_saved_is_what_is_seen(asked, tmp_path):
    page = asked
    page.locator(".switch").nth(2).click()
    name, data = saved(page, "#save-coco")
    assert name == "photo-coco.json"
    (tmp_path / name).write_bytes(data)
    coco = COCO(tmp_path / name)
    masks = [coco.annToMask(annotation).astype(bool) for annotation in coco.loadAnns(coco.getAnnIds())]
    assert len(masks) == 2 and all((mask == true).all() for mask, true in zip(masks, halves_and_disc(60, 80), strict=False))
    assert [each["name"] for each in coco.cats.values()] == ["the left half", "a disc"]
    assert json.loads(data)["info"]["question"] == "What is where?"
    name, data = saved(page, "#save-png")
    picture = np.asarray(to_image(data).convert("RGB"), dtype=int)
    photo = np.asarray(random_photo(60, 80), dtype=int)
    assert name == "photo-masks.png" and picture.shape == photo.shape
    left, disc, _ = halves_and_disc(60, 80)
    assert (picture == photo)[~left & ~disc].all(), "the mask that is off was painted"
    colored = 0.5 * photo + 0.5 * np.array(color_of(0))
    assert abs(picture - colored)[:, :10].max() <= 2  # no edges there; 8-bit steps of two blends


def test_the_server_reads_the_photo_as_the_page_shows_it(page):
    """The server turns photos by EXIF in all formats, browsers in JPEG; neither does so by XMP."""
    photo = np.full((48, 64, 3), 255, dtype=np.uint8)
    photo[:16, :16] = (255, 0, 0)
    files = []
    for kind, orientation in product(("JPEG", "PNG", "WEBP", "GIF"), range(1, 9)):
        exif, stream = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        options = {} if kind == "GIF" else {"exif": exif, "quality": 95}
        Image.fromarray(photo).save(stream, kind, **options)
        files.append([kind, orientation, list(stream.getvalue())])
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
    for kind in ("JPEG", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(photo).save(stream, kind, xmp=xmp, quality=95)
        files.append([kind, "XMP", list(stream.getvalue())])
    results = page.evaluate("""async (files) => {
        const {readPhoto} = await import('/web/photo.js');
        return Promise.all(files.map(async ([kind, , bytes]) => {
            const photo = await readPhoto(new File([new Uint8Array(bytes)], 'photo', {type: `image/${kind.toLowerCase()}`}));
            const image = new Image();
            image.src = photo.url;
            await image.decode();
            const canvas = new OffscreenCanvas(photo.width, photo.height), context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
            return [photo.dataUrl, photo.height, photo.width, [...pixels].join(' ')];
        }));
    }""", files)
    for (kind, orientation, data), (url, height, width, pixels) in zip(files, results, strict=True):
        seen = np.array(pixels.split(" "), dtype=int).reshape(height, width, 4)[..., :3]
        read = np.asarray(load_photo(decode_base64(url), PhotoLimits(max_pixels=10_000)), dtype=int)
        assert seen.shape == read.shape and abs(seen - read).mean() < 3, (kind, orientation)
        if kind in ("JPEG", "PNG") and orientation != "XMP":
            assert seen.shape == np.asarray(upright_rgb(to_image(bytes(data)))).shape, (kind, orientation)
