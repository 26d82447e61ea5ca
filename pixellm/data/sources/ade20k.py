"""ADE20K as the scene parsing challenge ships it (ADEChallengeData2016.zip): 150 classes, things and stuff.

Maps hold 0 where nothing is labelled, else the `Idx` of objectInfo150.txt, a table separated by tabs whose `Name` lists synonyms.
Format: github.com/CSAILVision/sceneparsing.
"""

from typing import ClassVar, Literal

from pixellm.data.sources.label_maps import plan_label_maps
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.plan import SourcePlan
from pixellm.data.sources.semantic import SemanticSource
from pixellm.data.sources.text_files import decode_text
from pixellm.errors import ConfigError
from pixellm.storage import join_uri, read_bytes

UNLABELED = 0


class Ade20kSource(SemanticSource):
    """ADE20K: scenes with every pixel labelled, 150 classes. `input` is the folder ADEChallengeData2016."""

    dataset: ClassVar[str] = "ade20k"

    split: Literal["train", "val"]

    def plan(self) -> SourcePlan:
        """One record per label map."""
        folder = {"train": "training", "val": "validation"}[self.split]
        parts = find_parts("ADE20K", "ADEChallengeData2016.zip", {
            "photos": [join_uri(self.input, "images", folder)],
            "label maps": [join_uri(self.input, "annotations", folder)],
            "class names": [join_uri(self.input, "objectInfo150.txt")]})
        names_file = read_bytes(parts["class names"])
        names = {UNLABELED: None, **_read_names(names_file, parts["class names"])}
        return plan_label_maps(self, parts["photos"], parts["label maps"], names, names_file)


def _read_names(data: bytes, uri: str) -> dict[int, str]:
    """The first of the synonyms by label."""
    try:
        header, *rows = (line.split("\t") for line in decode_text(data).splitlines() if line)
        label, name = header.index("Idx"), header.index("Name")
        return {int(row[label]): row[name].split(",")[0].strip() for row in rows}
    except (ValueError, IndexError) as error:  # RowError of `decode_text` is one
        raise ConfigError(f"{uri} is no table with the columns Idx and Name: {error}") from None
