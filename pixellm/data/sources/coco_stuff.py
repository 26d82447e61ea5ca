"""COCO-Stuff (stuffthingmaps_trainval2017.zip): 80 kinds of things and 91 of stuff on the photos of COCO 2017.

Maps hold the class's number in labels.txt ("1: person") less one, and 255 where nothing is labelled.
Format: github.com/nightrome/cocostuff.
"""

import re
from typing import ClassVar, Literal

from pixellm.data.sources.label_maps import plan_label_maps
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.plan import SourcePlan
from pixellm.data.sources.semantic import SemanticSource
from pixellm.data.sources.text_files import decode_text
from pixellm.errors import ConfigError, RowError
from pixellm.storage import join_uri, read_bytes
from pixellm.uris import Uri

UNLABELED = 255


class CocoStuffSource(SemanticSource):
    """COCO-Stuff: things and stuff on COCO 2017. `input` holds labels.txt, the maps and the photos, which `photos` may place elsewhere.

    The folder of a split's maps is annotations/train2017 as in the publisher's instructions, or stuffthingmaps_trainval2017/train2017.
    `photos` is the folder of the split itself: coco/train2017.
    """

    dataset: ClassVar[str] = "coco_stuff"

    split: Literal["train", "val"]
    photos: Uri | None = None

    def plan(self) -> SourcePlan:
        """One record per label map."""
        folder = f"{self.split}2017"
        parts = find_parts("COCO-Stuff", f"{folder}.zip, stuffthingmaps_trainval2017.zip and labels.txt of nightrome/cocostuff", {
            "photos": [self.photos] if self.photos else [join_uri(self.input, "images", folder), join_uri(self.input, folder)],
            "label maps": [join_uri(self.input, parent, folder) for parent in ("annotations", "stuffthingmaps_trainval2017")],
            "class names": [join_uri(self.input, "labels.txt")]})
        names_file = read_bytes(parts["class names"])
        names = {UNLABELED: None, **_read_names(names_file, parts["class names"])}
        return plan_label_maps(self, parts["photos"], parts["label maps"], names, names_file)


def _read_names(data: bytes, uri: str) -> dict[int, str | None]:
    """Names by label. Those with a hyphen (wall-brick, food-other) are no words that people say: ignored, as in the released code."""
    lines = re.findall(r"^(\d+): *(.+?)\s*$", _decode(data, uri), re.MULTILINE)
    if not lines:
        raise ConfigError(f"{uri} has no line like '1: person'; it is labels.txt of the repository nightrome/cocostuff")
    return {int(number) - 1: None if "-" in name else name for number, name in lines if number != "0"}


def _decode(data: bytes, uri: str) -> str:
    try:
        return decode_text(data)
    except RowError as error:
        raise ConfigError(f"{uri}: {error}") from None
