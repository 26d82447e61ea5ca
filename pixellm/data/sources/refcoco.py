"""refCOCO, refCOCO+, refCOCOg and refCLEF: short texts that people wrote so that others find one thing in a photo.

Layout of `refer` (github.com/lichengunc/refer): `<dataset>/refs(<split_by>).p`, `<dataset>/instances.json`, and the photos, COCO's
train2014 or, for refCLEF, `saiapr_tc-12`.
"""

import random
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pixellm.data.prompts import absent_answer_for, question_for
from pixellm.data.schema import Conversation
from pixellm.data.sources.expressions import COCO_PHOTO_FOLDERS, Asked, ExpressionsFiles, ExpressionsSource, plan_expressions
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.plan import SourcePlan
from pixellm.storage import join_uri
from pixellm.uris import Uri


class RefcocoSource(ExpressionsSource):
    """refCOCO, refCOCO+, refCOCOg, refCLEF: referring expressions, each a question with one target."""

    input: Uri = Field(description="folder that holds the folder of the dataset, and images/")
    dataset: Literal["refcoco", "refcoco+", "refcocog", "refclef"] = "refcoco"
    split_by: Literal["unc", "umd", "google", "berkeley"] | None = Field(
        None, description="who made the split: umd for refcocog and unc for the others unless given")
    photos: Uri | None = Field(None, description="folder of the photos, where it is not in its place below images/")

    def plan(self) -> SourcePlan:
        """See Source."""
        return plan_expressions(self, self.dataset, self.find_files(), ask_one_by_one)

    def find_files(self) -> ExpressionsFiles:
        """Raises ConfigError that names all that is missing."""
        folder = join_uri(self.input, self.dataset)
        refs = f"refs({self.split_by or ('umd' if self.dataset == 'refcocog' else 'unc')})"
        photos = ("images/saiapr_tc-12",) if self.dataset == "refclef" else COCO_PHOTO_FOLDERS
        archive = "saiapr_tc-12.zip" if self.dataset == "refclef" else "train2014.zip of COCO"
        return ExpressionsFiles(**find_parts(self.dataset, f"{self.dataset}.zip of lichengunc/refer, its photos as {archive}", {
            "refs": [join_uri(folder, f"{refs}.p"), join_uri(folder, f"{refs}.json")],
            "instances": [join_uri(folder, "instances.json")],
            "photos": [self.photos] if self.photos else [join_uri(self.input, each) for each in photos],
        }))


def ask_one_by_one(asked: Sequence[Asked], rng: random.Random) -> list[Conversation]:
    """One question per expression, one target per thing that it means; the answer, which names the categories, is drawn when streamed.

    An expression goes into the templates for one name, "the …": those of the task `referring` say "every …", which it does not mean.
    """
    return [
        Conversation(
            question=question_for([each.name], "semantic", rng), answer=None if each.targets else absent_answer_for([each.name], rng),
            targets=[[index] for index in each.targets], task="referring")
        for each in asked
    ]
