"""Annotation files as JSON, without a Python object per annotation: entries stay the text they are until somebody needs one."""

import hashlib
from typing import TypeVar

import msgspec

from pixellm.errors import ConfigError
from pixellm.storage import read_bytes

T = TypeVar("T")


def read_json(uri: str, kind: type[T]) -> tuple[T, str]:
    """The file decoded as `kind`, and its sha256. `list[msgspec.Raw]` keeps each entry as its text.

    Raises ConfigError that names the place where the file is not what `kind` says, StorageError where it cannot be read.
    """
    data = read_bytes(uri)
    try:
        return msgspec.json.decode(data, type=kind), hashlib.sha256(data).hexdigest()
    except msgspec.DecodeError as error:
        raise ConfigError(f"{uri} is not such an annotation file: {error}") from None
