"""Preparation, training, prediction and serving take the same files, turn them alike and refuse the others with the same reason."""

import asyncio
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from pixellm.data.collate import Collator
from pixellm.data.schema import read_photo_info, validate_row
from pixellm.data.shrink import shrink_row
from pixellm.data.spans import StreamedRow
from pixellm.errors import InputError, RowError
from pixellm.model.processing_pixellm import PixelLMImageProcessor
from pixellm.photo_headers import MAX_CHUNKS, MAX_SCANS, MAX_SEGMENTS, exif_orientation, read_header
from pixellm.photos import load_photo, upright_rgb
from serve.admission import PhotoPlace, PixelBudget
from serve.config import AppConfig
from serve.limits import read_photo
from tests.data.rows import make_row
from tests.photo_files import (
    BROKEN_RESOLUTION,
    LONG,
    chunk,
    exif_block,
    jpeg,
    jpeg_of_scans,
    mpo,
    orientation_tag,
    png,
    png_header,
    segment,
    webp,
    webp_header,
    with_segments,
)

UPRIGHT, TURNED = (12, 16), (16, 12)
TURN = exif_block([BROKEN_RESOLUTION, orientation_tag(6)])
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PROFILE_BOMB = chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(30_000_000), 9))
# Each tag claims four million bytes: Pillow keeps all of them.
EXIF_BOMB = b"II*\0" + struct.pack("<IH", 8, 9000) + b"".join(struct.pack("<HHII", 30000 + i, 7, 100_000, 8) for i in range(9000))


class _Processor:
    image_processor = PixelLMImageProcessor()


def every_path(data: bytes) -> list[tuple[int, int] | str]:
    """Upright size (h, w), or the reason of the refusal: of preparation, its row, training, making smaller, prediction, serving."""
    found: list[tuple[int, int] | str] = []
    row = make_row(image=data, height=12, width=16, regions=[], conversations=[
        {"question": "Who?", "answer": "Nobody.", "targets": [], "task": "vqa"}])
    try:
        height, width = read_photo_info(data).size_hw
        row = make_row(**row | {"height": height, "width": width})
    except RowError:
        height = width = 1
    collator = Collator(_Processor(), 1, 0)  # type: ignore[arg-type]

    def shrink() -> tuple[int, int]:
        read_photo_info(shrink_row(make_row(**row | {"height": 50, "width": 50}), 49)["image"])
        return height, width

    request = Request({"type": "http", "state": {"photo_place": PhotoPlace(PixelBudget(10**9))}})
    for path in (lambda: read_photo_info(data).size_hw, lambda: validate_row(row) or (height, width), shrink,
                 lambda: collator.build_example(StreamedRow(row, 0, "a")).photo.size[::-1], lambda: load_photo(data).size[::-1],
                 lambda: asyncio.run(read_photo(data, AppConfig(model="tiny"), request)).shape[:2]):
        try:
            found.append(path())
        except (InputError, RowError) as error:
            found.append(error.code if isinstance(error, InputError) else error.reason)
    return found


@pytest.mark.parametrize(("data", "expected"), [
    pytest.param(with_segments(jpeg(), segment(0xE1, TURN)), TURNED, id="a signed fraction -1/0 in EXIF"),
    pytest.param(with_segments(jpeg(), segment(0xE1, exif_block([orientation_tag(6), BROKEN_RESOLUTION]))), TURNED, id="out of order"),
    pytest.param(with_segments(jpeg(), segment(0xE1, exif_block([orientation_tag(6)], num_tags=900))), TURNED, id="too high a count"),
    pytest.param(with_segments(jpeg(), segment(0xE1, TURN[:20])), UPRIGHT, id="EXIF cut off"),
    pytest.param(with_segments(jpeg(), segment(0xE1, TURN), *[segment(0xE1, b"Exif\0\0" + bytes(60_000))] * 50), TURNED, id="3 MB of EXIF"),
    pytest.param(with_segments(jpeg(), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)), UPRIGHT, id="XMP"),
    pytest.param(with_segments(jpeg(), segment(0xE2, b"MPF\0II*\0junk"), segment(0xED, b"Photoshop 3.0\x008BIM")), UPRIGHT, id="junk"),
    pytest.param(mpo(), UPRIGHT, id="MPO"),
    pytest.param(with_segments(mpo(), segment(0xE1, TURN)), TURNED, id="MPO turned"),
    pytest.param(jpeg() + b"trailing" * 99, UPRIGHT, id="data after the end"),
    pytest.param(jpeg(mode="CMYK"), UPRIGHT, id="CMYK"), pytest.param(jpeg(mode="L"), UPRIGHT, id="grey"),
    pytest.param(jpeg_of_scans(MAX_SCANS), UPRIGHT, id="as many scans as allowed"),
    pytest.param(png(chunks=[chunk(b"eXIf", TURN[6:])]), TURNED, id="EXIF in PNG"),
    pytest.param(png(chunks=[chunk(b"eXIf", EXIF_BOMB)]), UPRIGHT, id="0.9 GB of EXIF values"),
    pytest.param(png(chunks=[chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)]), UPRIGHT, id="XMP in PNG"),
    pytest.param(png(chunks=[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(30_000_000), 9))]), UPRIGHT, id="a text that unpacks to 30 MB"),
    pytest.param(png(chunks=[PROFILE_BOMB]), UPRIGHT, id="a profile that unpacks to 30 MB"),
    pytest.param(png(mode="P", transparency=3), UPRIGHT, id="palette with transparency"),
    pytest.param(png(mode="I;16"), UPRIGHT, id="16 bits"), pytest.param(png(mode="LA"), UPRIGHT, id="grey and alpha"),
    pytest.param(png(save_all=True, append_images=[Image.new("RGB", (16, 12))] * 3), UPRIGHT, id="animated PNG"),
    pytest.param(webp(exif=TURN), TURNED, id="EXIF in WebP"), pytest.param(webp(xmp=XMP), UPRIGHT, id="XMP in WebP"),
    pytest.param(webp(save_all=True, append_images=[Image.new("RGB", (16, 12))] * 3), UPRIGHT, id="animated WebP"),
    pytest.param(webp(mode="RGBA", lossless=True), UPRIGHT, id="lossless WebP"),
    pytest.param(b"", "photo_format", id="empty"), pytest.param(b"version https://git-lfs", "photo_format", id="LFS pointer"),
    pytest.param(b"GIF89a" + bytes(99), "photo_format", id="GIF"),
    pytest.param(jpeg()[:-100], "photo_unreadable", id="JPEG cut off"), pytest.param(png()[:-100], "photo_unreadable", id="PNG cut off"),
    pytest.param(webp()[:-100], "photo_unreadable", id="WebP cut off"),
    pytest.param(jpeg()[:30], "photo_unreadable", id="only a start"),
    pytest.param(jpeg().replace(b"\xff\xc0", b"\xff\xc9", 1), "photo_format", id="arithmetic coding"),
    pytest.param(jpeg_of_scans(MAX_SCANS + 1), "photo_too_complex", id="scans"),
    pytest.param(jpeg()[:-2] + jpeg()[jpeg().index(b"\xff\xda"):-2] * 4 + b"\xff\xd9", "photo_too_complex", id="baseline scans"),
    pytest.param(with_segments(jpeg(), segment(0xFE, b"") * MAX_SEGMENTS), "photo_too_complex", id="segments"),
    pytest.param(png(chunks=[chunk(b"abCd") * MAX_CHUNKS]), "photo_too_complex", id="chunks"),
    pytest.param(png_header(1, 39_000_000), "photo_too_large", id="1 x 39,000,000"),
    pytest.param(png_header(39_000_000, 1), "photo_too_large", id="39,000,000 x 1"),
    pytest.param(png_header(9000, 9000), "photo_too_large", id="81 megapixels"),
    pytest.param(png_header(2**31 - 1, 2**31 - 1), "photo_too_large", id="2**62 pixels"),
    pytest.param(webp_header(16_000, 16_000), "photo_too_large", id="256 megapixels in WebP"),
    pytest.param(png_header(100_000, 20), "photo_too_large", id="a long strip"),
    pytest.param(png_header(0, 5), "photo_unreadable", id="0 x 5"),
    pytest.param(jpeg(1000, 9), "photo_aspect", id="a narrow JPEG"), pytest.param(png_header(9, 1000), "photo_aspect", id="a narrow PNG"),
    pytest.param(webp_header(16_000, 100), "photo_aspect", id="a narrow WebP"),
])
def test_all_paths_agree(data: bytes, expected: tuple[int, int] | str) -> None:
    found = every_path(data)
    assert found == [expected] * len(found)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_our_turns_are_those_of_exif(orientation: int) -> None:
    """The red corner of the stored photo goes where EXIF says that the first row and column are; once, however often it is asked."""
    photo = Image.new("RGB", (40, 20), "blue")
    photo.paste("red", (0, 0, 8, 8))
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=95, exif=exif_block([orientation_tag(orientation)]))
    upright = upright_rgb(Image.open(stream))
    assert upright.size == ((40, 20) if orientation < 5 else (20, 40)) == load_photo(stream.getvalue()).size
    right, bottom = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}[orientation]
    red, green, blue = upright.getpixel((right * (upright.width - 1), bottom * (upright.height - 1)))
    assert red > 200 and blue < 60 and green < 60
    assert np.array_equal(upright_rgb(upright), upright) and read_header(stream.getvalue()).orientation == orientation


@pytest.mark.parametrize(("exif", "expected"), [
    (exif_block([orientation_tag(8)]), 8), (exif_block([orientation_tag(8)])[6:], 8),
    (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0", 3), (exif_block([orientation_tag(0)]), 1),
    (exif_block([orientation_tag(9)]), 1), (exif_block([orientation_tag(6, LONG)]), 1), (b"", 1), (b"II*\0\xff\xff\xff\xff", 1),
    (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", 1)])
def test_orientation_is_read_as_browsers_read_it(exif: bytes, expected: int) -> None:
    assert exif_orientation(exif) == expected


@pytest.mark.parametrize("encode", [jpeg, png, webp])
def test_a_colour_profile_is_kept_for_the_decoder_and_nothing_else(encode) -> None:
    profile = bytes(16) + b"RGB " + bytes(200)
    data = encode(60, 40, icc_profile=profile, exif=TURN)
    small = shrink_row(make_row(image=data, height=60, width=40, regions=[]), 30)
    photo = Image.open(io.BytesIO(small["image"]))
    assert photo.info["icc_profile"] == profile and photo.size == (20, 30) and not photo.info.get("exif")


def test_pixels_are_those_of_the_whole_file() -> None:
    for data in (jpeg(60, 40), jpeg(60, 40, progressive=True), jpeg(60, 40, mode="CMYK"), jpeg(60, 40, restart_marker_blocks=1, quality=99),
                 mpo(60, 40), png(60, 40), png(60, 40, mode="P"), webp(60, 40)):
        assert np.array_equal(load_photo(data), Image.open(io.BytesIO(data)).convert("RGB"))
