"""An encoded photo before a pixel is decoded: its format, size, orientation, and the part of the file that makes its pixels.

Decoders get that part only. So no tag, text, profile, second picture or frame of an animation can break, slow or fill them, and every
reader of photos refuses the same files: those whose header costs too much are `photo_too_complex` here.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pixellm.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP")
ORIENTATION_TAG, SHORT = 0x0112, 3  # of EXIF: the tag, and the type that it has
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that exchange height and width
# A scan of a progressive JPEG costs a pass over all its coefficients, however few bytes it has: 0.7 ms a megapixel. libjpeg's own scripts
# have 6, 10 and 18 scans for one, three and four channels (counted in files that Pillow wrote); a longer list only costs time.
MAX_SCANS = 32
MAX_SEGMENTS = 4096  # of a JPEG; the longest seen are depth maps and thermal data in some hundred segments of 64 KB
MAX_CHUNKS = 100_000  # of a PNG or WebP; libpng writes 50 megapixels in 18,000 chunks of 8 KB
SEARCHED_BYTES = 1 << 20
MAX_PROFILE_BYTES = 1 << 20  # of a PNG's colour profile, unpacked; Pillow's limit

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SOI, _EOI, _SOS, _COM = 0xD8, 0xD9, 0xDA, 0xFE
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2  # the frames that cameras and browsers know
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)  # lossless, hierarchical, arithmetic: 4 s for a kilobyte
_ALONE = (0x01, *range(0xD0, 0xD8))  # markers without a length: TEM, restarts
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed byte, fill byte or restart


@dataclass(frozen=True)
class PhotoHeader:
    """`stored_hw` is the size before EXIF orientation, a value from 1 to 8. `pixels` is the file without what does not make its pixels."""

    format: Literal["JPEG", "PNG", "WEBP"]
    stored_hw: tuple[int, int]
    orientation: int
    pixels: bytes

    @property
    def size_hw(self) -> tuple[int, int]:
        """Upright size in pixels."""
        return self.stored_hw[::-1] if self.orientation in QUARTER_TURNS else self.stored_hw


def read_header(data: bytes) -> PhotoHeader:
    """Read the header of a JPEG (an MPO is one, of its first picture), a PNG (of an APNG the still picture), or a WebP.

    Raises InputError: `photo_format` (none of them), `photo_unreadable` (a damaged header), `photo_too_complex` (more scans, segments or
    chunks than any camera or encoder writes).
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data.startswith(_PNG_SIGNATURE):
            return _read_png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (struct.error, IndexError):
        raise InputError("photo_unreadable", "the photo's header is cut off") from None
    raise InputError("photo_format", f"the {len(data)} bytes are not a photo in one of the formats {', '.join(FORMATS)}")


def exif_orientation(exif: bytes) -> int:
    """Orientation by the first table of an EXIF block, 1 to 8; 1 where it says none. No other tag is looked at.

    As in browsers: the tag is a single SHORT, and what XMP says does not count.
    """
    tiff = exif[6:] if exif.startswith(b"Exif\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order:
            (start,) = struct.unpack_from(f"{order}I", tiff, 4)
            (num_tags,) = struct.unpack_from(f"{order}H", tiff, start)
            for place in range(start + 2, start + 2 + 12 * num_tags, 12):
                tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, place)
                if tag == ORIENTATION_TAG:
                    return value if (kind, count) == (SHORT, 1) and 1 <= value <= 8 else 1
    except struct.error:  # the table ends before its count says
        pass
    return 1


def _read_jpeg(data: bytes) -> PhotoHeader:
    kept: list[bytes] = [b"\xff\xd8"]
    frame: tuple[int, int, int, int] | None = None  # its marker, height, width, number of channels
    orientation: int | None = None
    for marker, start, stop in _jpeg_segments(data):
        content = data[start + 4:stop]
        if marker == _SOS:
            if frame is None:
                break
            kind, height, width, num_channels = frame
            kept.append(data[start:_end_of_scans(data, start, MAX_SCANS if kind == _PROGRESSIVE else num_channels)])
            return PhotoHeader("JPEG", (height, width), orientation or 1, b"".join(kept))
        if marker in _OTHER_FRAMES:
            raise InputError("photo_format", f"the JPEG is of a kind that browsers do not show (SOF{marker - 0xC0}); save it again")
        if marker in (_BASELINE, _EXTENDED, _PROGRESSIVE):
            frame = (marker, *struct.unpack_from(">HHB", content, 1))
        if marker == 0xE1 and content.startswith(b"Exif\0") and orientation is None:
            orientation = exif_orientation(content)
        is_metadata = 0xE0 <= marker <= 0xEF or marker == _COM
        if not is_metadata or content.startswith((b"JFIF\0", b"Adobe", b"ICC_PROFILE\0")):
            kept.append(data[start:stop])
    raise InputError("photo_unreadable", "the JPEG has no picture")


def _jpeg_segments(data: bytes, place: int = 2) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment from `place` on, `_EOI` last; entropy-coded data between them is skipped."""
    for _ in range(MAX_SEGMENTS):
        if not (found := _find_marker(data, place)):
            return
        marker, place = data[found.start() + 1], found.end()
        if marker in _ALONE:
            continue
        if marker != _EOI:
            place += struct.unpack_from(">H", data, place)[0]
        yield marker, found.start(), place
        if marker == _EOI:
            return
    raise InputError("photo_too_complex", f"the JPEG has more than {MAX_SEGMENTS:,} segments; save it again")


def _find_marker(data: bytes, place: int) -> re.Match[bytes] | None:
    """The next marker, looked for piece by piece: a search is one call that no other thread of Python interrupts."""
    for start in range(place, len(data), SEARCHED_BYTES):
        if found := _MARKER.search(data, start, start + SEARCHED_BYTES + 1):
            return found
    return None


def _end_of_scans(data: bytes, start: int, max_scans: int) -> int:
    """The end of the picture whose first scan is at `start`. Raises InputError for more than `max_scans`."""
    num_scans = 0
    for marker, _, stop in _jpeg_segments(data, start):
        if marker == _EOI:
            return stop
        num_scans += marker == _SOS
        if num_scans > max_scans:
            raise InputError("photo_too_complex", f"the JPEG has more than {max_scans} scans; save it again")
    return len(data)


def _read_png(data: bytes) -> PhotoHeader:
    if data[12:16] != b"IHDR":
        raise InputError("photo_unreadable", "the PNG does not begin with its size")
    width, height = struct.unpack_from(">II", data, 16)
    kept, orientation, place = [_PNG_SIGNATURE], 1, len(_PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if place + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        stop = place + 12 + length
        if kind == b"eXIf":
            orientation = exif_orientation(data[place + 8:stop - 4])
        is_critical = not kind[0] & 0x20
        if is_critical or kind == b"tRNS" or (kind == b"iCCP" and _is_small_profile(data[place + 8:stop - 4])):
            kept.append(data[place:stop])
        place = stop
        if kind == b"IEND":
            break
    else:
        raise InputError("photo_too_complex", f"the PNG has more than {MAX_CHUNKS:,} chunks; save it again")
    return PhotoHeader("PNG", (height, width), orientation, b"".join(kept))


def _is_small_profile(chunk: bytes) -> bool:
    """Tell whether the profile of an iCCP chunk, after its name and a byte, unpacks to at most `MAX_PROFILE_BYTES`."""
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(chunk[chunk.index(0) + 2:], MAX_PROFILE_BYTES)
    except (ValueError, zlib.error):
        return False
    return unpacking.eof


def _read_webp(data: bytes) -> PhotoHeader:
    size_hw, orientation, place = None, 1, 12
    for _ in range(MAX_CHUNKS):
        if place + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, place)
        place += 8
        if kind == b"EXIF":
            orientation = exif_orientation(data[place:place + length])
        elif size_hw is None:
            size_hw = _webp_size(kind, data[place:place + 10])
        place += length + length % 2
    else:
        raise InputError("photo_too_complex", f"the WebP has more than {MAX_CHUNKS:,} chunks; save it again")
    if size_hw is None:
        raise InputError("photo_unreadable", "the WebP has no picture")
    return PhotoHeader("WEBP", size_hw, orientation, data)


def _webp_size(kind: bytes, start: bytes) -> tuple[int, int] | None:
    """(h, w) by the first chunk: a canvas, or a lossy or lossless picture."""
    if kind == b"VP8X":
        return int.from_bytes(start[7:10], "little") + 1, int.from_bytes(start[4:7], "little") + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", start, 6)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", start, 1)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return None
