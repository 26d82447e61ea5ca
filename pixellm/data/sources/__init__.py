"""Readers of datasets, one file each: see plan.py for what a source promises. This is the table of all of them."""

import difflib
import inspect

from pixellm.data.sources.ade20k import Ade20kSource
from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.coco_stuff import CocoStuffSource
from pixellm.data.sources.grefcoco import GrefcocoSource
from pixellm.data.sources.llava_instruct import LlavaInstructSource
from pixellm.data.sources.lvis import LvisSource
from pixellm.data.sources.mapillary import MapillarySource
from pixellm.data.sources.multi_referring import MultiReferringSource
from pixellm.data.sources.muse import MuseSource
from pixellm.data.sources.paco import PacoSource
from pixellm.data.sources.pascal_part import PascalPartSource
from pixellm.data.sources.plan import Source
from pixellm.data.sources.reason_seg import ReasonSegSource
from pixellm.data.sources.refcoco import RefcocoSource
from pixellm.data.sources.shapes import ShapesSource
from pixellm.errors import ConfigError

SOURCES: dict[str, type[Source]] = {
    "ade20k": Ade20kSource,
    "coco": CocoSource,
    "coco_stuff": CocoStuffSource,
    "grefcoco": GrefcocoSource,
    "llava_instruct": LlavaInstructSource,
    "lvis": LvisSource,
    "mapillary": MapillarySource,
    "multi_referring": MultiReferringSource,
    "muse": MuseSource,
    "paco": PacoSource,
    "pascal_part": PascalPartSource,
    "reason_seg": ReasonSegSource,
    "refcoco": RefcocoSource,
    "shapes": ShapesSource,
}


def source_class(name: str) -> type[Source]:
    """The config class of a source. Raises ConfigError that names the known ones."""
    if name not in SOURCES:
        close = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"unknown source {name!r}; {hint}known: {', '.join(SOURCES)}")
    return SOURCES[name]


def describe_sources() -> str:
    """One line per source: its name and the first line of its class."""
    return "\n".join(f"  {name:<20}{(inspect.getdoc(source) or '').partition(chr(10))[0]}" for name, source in SOURCES.items())
