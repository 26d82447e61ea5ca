"""gRefCOCO (Liu et al., "GRES", CVPR 2023): expressions that mean one thing of a photo, several, or none.

Layout of its authors (github.com/henghuiding/ReLA): `grefcoco/grefs(unc).json`, `grefcoco/instances.json` and COCO's train2014.
`ann_id` is a list there, `[-1]` where nothing is meant.
"""

from pydantic import Field

from pixellm.data.sources.expressions import COCO_PHOTO_FOLDERS, ExpressionsFiles, ExpressionsSource, plan_expressions
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.plan import SourcePlan
from pixellm.data.sources.refcoco import ask_one_by_one
from pixellm.storage import join_uri
from pixellm.uris import Uri


class GrefcocoSource(ExpressionsSource):
    """gRefCOCO: referring expressions, each a question with one target, several, or none."""

    input: Uri = Field(description="folder that holds grefcoco/ and images/")
    photos: Uri | None = Field(None, description="folder of the photos, where it is not in its place below images/")

    def plan(self) -> SourcePlan:
        """See Source."""
        folder = join_uri(self.input, "grefcoco")
        files = ExpressionsFiles(**find_parts("gRefCOCO", "grefs(unc).json and instances.json, its photos as train2014.zip of COCO", {
            "refs": [join_uri(folder, "grefs(unc).json"), join_uri(folder, "grefs(unc).p")],
            "instances": [join_uri(folder, "instances.json")],
            "photos": [self.photos] if self.photos else [join_uri(self.input, each) for each in COCO_PHOTO_FOLDERS],
        }))
        return plan_expressions(self, "grefcoco", files, ask_one_by_one)
