"""Multi-referring: several expressions of one photo in one question, as the paper evaluates; made of the files of the refCOCO family."""

import random
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from pydantic import Field

from pixellm.data.prompts import answer_for, instance_phrases, question_for
from pixellm.data.schema import Conversation
from pixellm.data.sources.expressions import Asked, plan_expressions
from pixellm.data.sources.plan import SourcePlan
from pixellm.data.sources.refcoco import RefcocoSource


class MultiReferringSource(RefcocoSource):
    """Expressions of refCOCO, refCOCO+, refCOCOg or refCLEF, several things of a photo asked for in one question."""

    max_targets: int = Field(3, ge=2, description="expressions in a question, two at least")

    def plan(self) -> SourcePlan:
        """See Source."""
        ask = partial(ask_in_groups, max_targets=self.max_targets)
        return plan_expressions(self, f"multi_{self.dataset}", self.find_files(), ask)


def ask_in_groups(asked: Sequence[Asked], rng: random.Random, max_targets: int) -> list[Conversation]:
    """Questions about 2 to `max_targets` different things each; of a photo where expressions are for one thing only, none.

    Every expression is asked for at most once: in the first round one of each thing, in the second another one of those that have two, …
    A text that is said of two things of the photo does not tell which, and is left out.
    """
    meant: dict[str, set[int]] = defaultdict(set)
    for each in asked:
        meant[each.name].update(each.targets)
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, targets in meant.items():
        if len(targets) == 1:
            names_of[next(iter(targets))].append(name)
    for names in names_of.values():
        rng.shuffle(names)
    conversations: list[Conversation] = []
    for number in range(max(map(len, names_of.values()), default=0)):
        things = [index for index, names in names_of.items() if len(names) > number]
        rng.shuffle(things)
        num_groups = -(-len(things) // max_targets)
        for first in range(num_groups):
            group = things[first::num_groups]  # sizes differ by one at most
            if len(group) < 2:
                continue
            names = [names_of[index][number] for index in group]
            conversations.append(Conversation(
                question=question_for(names, "semantic", rng), answer=answer_for(instance_phrases(names), rng),
                targets=[[index] for index in group], task="referring"))
    return conversations
