"""Bytes of a text file to text: which encoding it has is read off the file or told, never guessed between two that both fit."""

import codecs
import re

from pixellm.errors import RowError

ENCODINGS = ("utf-8", "utf-16", "gb18030", "cp1252", "latin-1", "big5", "shift_jis", "euc_kr")  # those that a user may name
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
CHUNK_BYTES = 16 << 20
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
# What stands alone in western text: a letter, a symbol, or a quotation mark, dash or ellipsis, which may have a letter beside it.
_WESTERN_RUN = re.compile(rb"[\xc0-\xff\xa0\xa1\xa3\xa7\xa9\xab\xae\xb0\xb4\xb7\xbb\xbf\x80\x99]|[\x85\x91-\x97][\xc0-\xff]?"
                          rb"|[\xc0-\xff][\x85\x91-\x97]")


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """UTF-8, UTF-16 or UTF-32 by what the file begins with; else `encoding`, else cp1252 where the file can be nothing else.

    Western text has single letters beyond ASCII among others, encodings of East Asia write two bytes and more for each: a file with longer
    runs of such bytes may be either. Raises RowError `encoding_unknown`.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _decode(data, name)
    if b"\0" in data[:4]:  # the first character of JSON and of a table is ASCII
        return _decode(data, "utf-16-be" if data[:1] == b"\0" else "utf-16-le")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if encoding:
            return _decode(data, encoding)
        if all(map(_WESTERN_RUN.fullmatch, _HIGH_RUN.findall(data))):
            return _decode(data, "cp1252")
        raise RowError("encoding_unknown", f"byte {error.start} is not UTF-8, and the file may be GB18030 or another encoding; save it as "
                       f"UTF-8, or give encoding= one of {', '.join(ENCODINGS)} where the source has that key") from None


def is_utf8(data: bytes) -> bool:
    """Tell whether the bytes are UTF-8 without NUL, looked at piece by piece: a file of gigabytes is not copied."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), CHUNK_BYTES):
            decoder.decode(data[start:start + CHUNK_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return b"\0" not in data[:4]


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise RowError("encoding_unknown", f"byte {error.start} is not {encoding}: {error.reason}; save the file as UTF-8") from None
