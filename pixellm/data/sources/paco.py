"""PACO-LVIS: 75 kinds of objects and 456 kinds of their parts, on the photos of COCO 2017.

Categories of objects have LVIS names (`car_(automobile)`), those of parts both names (`car_(automobile):wheel`); each annotation, of an
object or of a part, has its own mask. `not_exhaustive_category_ids` of an image says what it has more of than is marked.
Format: github.com/facebookresearch/paco, docs/PACO_DATASET.md.
"""

from typing import ClassVar, Literal

from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.part_masks import PartMasksSource, plan_part_masks
from pixellm.data.sources.plan import SourcePlan
from pixellm.storage import join_uri
from pixellm.uris import Uri


class PacoSource(PartMasksSource):
    """PACO-LVIS: objects and their parts. `input` holds paco_lvis_v1_train.json, `photos` COCO's train2017 and val2017."""

    dataset: ClassVar[str] = "paco"

    split: Literal["train", "val", "test"]
    photos: Uri

    def plan(self) -> SourcePlan:
        """One record per photo."""
        file = f"paco_lvis_v1_{self.split}.json"
        parts = find_parts("PACO-LVIS", "paco_lvis_v1.zip, its photos as train2017.zip and val2017.zip of COCO", {
            "photos": [self.photos],
            "annotations": [join_uri(self.input, file), join_uri(self.input, "annotations", file)]})
        return plan_part_masks(self, parts["photos"], parts["annotations"])
