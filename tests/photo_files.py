"""Photos as cameras, tools and attackers write them, built byte by byte."""

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

from pixellm.testing import random_photo

SHORT, LONG, SRATIONAL = 3, 4, 10
Tag = tuple[int, int, int, bytes]  # number, type, count, the four bytes of its value or of where it is


def orientation_tag(value: int, kind: int = SHORT) -> Tag:
    return 0x0112, kind, 1, struct.pack("<HH", value, 0)


BROKEN_RESOLUTION: Tag = (0x011A, SRATIONAL, 1, struct.pack("<I", 64))  # -1/0, which Pillow cannot write again


def exif_block(tags: Sequence[Tag], num_tags: int | None = None) -> bytes:
    """Little-endian; `num_tags` says another number than there are."""
    table = b"".join(struct.pack("<HHI4s", *tag) for tag in tags)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags) if num_tags is None else num_tags) + table + bytes(4)
    return b"Exif\0\0" + tiff.ljust(64, b"\0") + struct.pack("<ii", -1, 0)


def jpeg(width: int = 16, height: int = 12, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    random_photo(height, width).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with more segments in front."""
    return data[:2] + b"".join(segments) + data[2:]


def mpo(width: int = 16, height: int = 12) -> bytes:
    """Two pictures in one file, as 3D cameras and phones write them."""
    stream = io.BytesIO()
    random_photo(height, width).save(stream, "MPO", save_all=True, append_images=[random_photo(height, width, seed=1)])
    assert Image.open(stream).format == "MPO"
    return stream.getvalue()


def jpeg_of_scans(num_scans: int, width: int = 16, height: int = 12) -> bytes:
    """Progressive; its last scan is repeated until there are `num_scans`."""
    data = jpeg(width, height, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (num_scans - data.count(b"\xff\xda")) + data[-2:]


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int = 16, height: int = 12, mode: str = "RGB", chunks: Sequence[bytes] = (), **options) -> bytes:
    """With `chunks` after its header."""
    stream = io.BytesIO()
    random_photo(height, width).convert(mode).save(stream, "PNG", **options)
    data = stream.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixel."""
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND")


def webp(width: int = 16, height: int = 12, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    random_photo(height, width).convert(mode).save(stream, "WEBP", **options)
    return stream.getvalue()


def webp_header(width: int, height: int) -> bytes:
    """A WebP whose canvas claims a size."""
    canvas = struct.pack("<4sII", b"VP8X", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas
