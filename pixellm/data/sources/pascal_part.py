"""Pascal-Part in COCO's form: 93 kinds of parts of 14 kinds of objects, on the photos of VOC2010.

The dataset comes as MATLAB files; `tools/pascal_part_mat2json.py` of github.com/facebookresearch/VLPart makes train.json and val.json of
them, which is what the paper's code reads. Categories are called `cat:leg`, masks are compressed RLE.
"""

from typing import ClassVar, Literal

from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.part_masks import PartMasksSource, plan_part_masks
from pixellm.data.sources.plan import SourcePlan
from pixellm.storage import join_uri


class PascalPartSource(PartMasksSource):
    """Pascal-Part: parts of animals, people and vehicles. `input` is the folder that holds train.json and VOCdevkit/VOC2010."""

    dataset: ClassVar[str] = "pascal_part"

    split: Literal["train", "val"]

    def plan(self) -> SourcePlan:
        """One record per photo."""
        parts = find_parts("Pascal-Part", "VOCtrainval_03-May-2010.tar and what VLPart makes of trainval.tar.gz", {
            "photos": [join_uri(self.input, "VOCdevkit/VOC2010/JPEGImages")],
            "annotations": [join_uri(self.input, f"{self.split}.json")]})
        return plan_part_masks(self, parts["photos"], parts["annotations"])
