"""Annotation files as JSON, without a Python object per annotation: entries stay the text they are until one is needed."""

import codecs
import hashlib
import json
import re
from typing import Any, TypeVar

import msgspec

from pixellm.data.sources.text_files import decode_text, is_utf8
from pixellm.errors import ConfigError, RowError
from pixellm.storage import read_bytes

T = TypeVar("T")
_NOT_JSON = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity|nan|inf)\b')  # a string, or what Python's json and others write for a float


def read_json(uri: str, kind: type[T]) -> tuple[T, str]:
    """The file decoded as `kind`, and its sha256. `list[msgspec.Raw]` keeps each entry as its text.

    Raises ConfigError that names the place where the file is not what `kind` says, StorageError where it cannot be read.
    """
    data = read_bytes(uri)
    try:
        return decode_json(data, kind), hashlib.sha256(data).hexdigest()
    except (msgspec.DecodeError, RowError) as error:
        raise ConfigError(f"{uri} is not such an annotation file: {error}") from None


def decode_json(data: bytes, kind: type[T], encoding: str | None = None) -> T:
    """JSON text in any encoding that `decode_text` reads, as `kind`.

    Whole numbers may be written as text or 64.0. NaN and Infinity, which JSON does not have, are read as null: what needs the number
    refuses that. Raises msgspec.DecodeError, and RowError of `decode_text`.
    """
    if not is_utf8(data):
        data = decode_text(data, encoding).encode()
    try:
        return msgspec.json.decode(data.removeprefix(codecs.BOM_UTF8), type=kind, strict=False)
    except msgspec.DecodeError:
        return msgspec.json.decode(_NOT_JSON.sub(_to_json, data.removeprefix(codecs.BOM_UTF8)), type=kind, strict=False)


def to_plain(raw: msgspec.Raw | bytes) -> Any:
    """An entry as plain Python values, with numbers beyond float64 too, which msgspec refuses."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return json.loads(bytes(raw))


def _to_json(found: re.Match[bytes]) -> bytes:
    return found.group() if found.group().startswith(b'"') else b"null"
