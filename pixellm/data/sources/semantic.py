"""Questions about whole classes of a photo, by their names: the target of a class is the union of all its regions.

The text is left open: it is drawn from the templates of the task `semantic` each time the row is streamed.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import ClassVar

from pydantic import Field

from pixellm.data.schema import Conversation, Region
from pixellm.data.sources.plan import Source
from pixellm.data.sources.referring import MAX_CATEGORIES_PER_QUESTION
from pixellm.errors import RowError
from pixellm.uris import Uri


class SemanticSource(Source):
    """What label maps and part masks have in common. `input` is the dataset's folder, `dataset` the `source` column of the rows."""

    dataset: ClassVar[str]

    input: Uri
    split: str
    questions_per_photo: int = Field(6, ge=1, le=64)


def build_semantic(regions: Sequence[Region], source: SemanticSource, image_id: str, withheld: Collection[str] = ()) -> list[Conversation]:
    """At most `questions_per_photo` conversations about different sets of one to three classes, drawn from (seed, image id).

    Each class is asked for once before any is asked for again. Those in `withheld` are not asked for: the photo has more of them than is
    marked. Raises RowError `nothing_to_ask`.
    """
    by_class: dict[str, list[int]] = defaultdict(list)
    for index, region in enumerate(regions):
        if not region["ignore"] and region["category"] not in withheld:
            by_class[region["category"]].append(index)
    if not by_class:
        raise RowError("nothing_to_ask", "no class of the photo is marked completely")
    rng = random.Random(repr((source.seed, source.dataset, image_id)))
    questions: dict[frozenset[str], Conversation] = {}
    deck: list[str] = []
    for _ in range(source.questions_per_photo):
        deck = deck or rng.sample(sorted(by_class), len(by_class))
        num_classes = rng.randint(1, MAX_CATEGORIES_PER_QUESTION)
        chosen, deck = deck[:num_classes], deck[num_classes:]
        targets = [by_class[name] for name in chosen]
        questions[frozenset(chosen)] = Conversation(question=None, answer=None, targets=targets, task="semantic")
    return list(questions.values())
