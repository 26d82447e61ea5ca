"""Readers of datasets, one file each: a strict config whose `read_rows()` yields rows, and RejectedRow for what is set aside."""

import difflib
from collections.abc import Iterator
from typing import Protocol

from pixellm.data.schema import RejectedRow, Row
from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.lvis import LvisSource
from pixellm.data.sources.shapes import ShapesSource
from pixellm.errors import ConfigError
from pixellm.settings import StrictModel


class Source(Protocol):
    """What every source offers; each is a StrictModel."""

    def read_rows(self) -> Iterator[Row | RejectedRow]:
        """Yields rows lazily, in a fixed order; what is wrong with one photo or annotation is yielded, not raised."""
        ...

    def num_rows(self) -> int:
        """Photos that `read_rows` will go through, kept or set aside."""
        ...

    def version(self) -> str:
        """Names the data that it reads: a change of the data changes it."""
        ...


SOURCES: dict[str, type[StrictModel]] = {"coco": CocoSource, "lvis": LvisSource, "shapes": ShapesSource}


def source_class(name: str) -> type[StrictModel]:
    """The config class of a source. Raises ConfigError that names the known ones."""
    if name not in SOURCES:
        close = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown source {name!r}; {hint}known: {', '.join(SOURCES)}")
    return SOURCES[name]
