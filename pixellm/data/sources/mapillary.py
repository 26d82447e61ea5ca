"""Mapillary Vistas v2.0: street scenes, 124 classes.

Maps hold the index of a class in the list `labels` of config_v2.0.json, in a PNG with a palette. A class has a `readable` name, and
`evaluate` is false for those that mean "could not tell". Format: the README of the download, and github.com/mapillary/mapillary_vistas.
"""

from typing import ClassVar, Literal

import msgspec

from pixellm.data.sources.json_files import read_json
from pixellm.data.sources.label_maps import plan_label_maps
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.plan import SourcePlan
from pixellm.data.sources.semantic import SemanticSource
from pixellm.storage import join_uri


class MapillarySource(SemanticSource):
    """Mapillary Vistas v2.0: street scenes, 124 classes. `input` is the folder that holds config_v2.0.json."""

    dataset: ClassVar[str] = "mapillary"

    split: Literal["train", "val"]

    def plan(self) -> SourcePlan:
        """One record per label map."""
        folder = {"train": "training", "val": "validation"}[self.split]
        parts = find_parts("Mapillary Vistas", "the download of version 2.0", {
            "photos": [join_uri(self.input, folder, "images")],
            "label maps": [join_uri(self.input, folder, "v2.0/labels")],
            "class names": [join_uri(self.input, "config_v2.0.json")]})
        config, sha256 = read_json(parts["class names"], _Config)
        names = {index: label.readable.lower() if label.evaluate else None for index, label in enumerate(config.labels)}
        return plan_label_maps(self, parts["photos"], parts["label maps"], names, sha256.encode())


class _Label(msgspec.Struct):
    readable: str
    evaluate: bool


class _Config(msgspec.Struct):
    labels: list[_Label]
