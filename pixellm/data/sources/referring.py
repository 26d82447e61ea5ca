"""Referring questions made from category names and synonyms: about one category, about several, and about one that is not there."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from pixellm.data.prompts import (
    DEFINITION_QUESTIONS,
    NAMES,
    absent_answer_for,
    answer_for,
    instance_phrases,
    question_for,
)
from pixellm.data.schema import Conversation, Region
from pixellm.settings import StrictModel

MAX_CATEGORIES_PER_QUESTION = 3


@dataclass(frozen=True)
class Category:
    """A category as people say it: `name` is unique in its dataset, `phrases` are names and synonyms that mean no other category."""

    name: str
    phrases: tuple[str, ...]
    definition: str | None = None


class ReferringOptions(StrictModel):
    """How many questions a photo gets, and of which kinds."""

    questions_per_photo: int = Field(6, ge=1, le=64)
    max_targets: int = Field(6, ge=1, description="{seg} per question: one per instance up to here, then one for the whole category")
    multi_category_share: float = Field(0.4, ge=0, le=1, description="share of the questions that are about two or three categories")
    absent_share: float = Field(0.15, ge=0, le=1, description="share of the questions that are about a category that is not in the photo")
    definition_share: float = Field(0.1, ge=0, le=1, description="share of the one-category questions that quote the category's definition")


def build_referring(
    regions: Sequence[Region],
    present: Mapping[Category, Sequence[int]],
    absent: Sequence[Category],
    options: ReferringOptions,
    rng: random.Random,
) -> list[Conversation]:
    """At most `questions_per_photo` different conversations.

    `present` maps each category that may be asked for to all its region indices (not the ignored ones); `absent` are known not to be there.
    The targets of a category come from left to right. No question at all when both are empty.
    """
    categories = sorted(present, key=lambda category: category.name)
    absent = sorted(absent, key=lambda category: category.name)
    singles = rng.sample(categories, len(categories))
    conversations: list[Conversation] = []
    asked: set[frozenset[str]] = set()
    for _ in range(options.questions_per_photo):
        if absent and (not categories or rng.random() < options.absent_share):
            chosen = [absent.pop(rng.randrange(len(absent)))]
            conversations.append(_absent_conversation(chosen[0], rng))
            continue
        if not singles or (len(categories) > 1 and rng.random() < options.multi_category_share):
            num_categories = min(rng.randint(2, MAX_CATEGORIES_PER_QUESTION), options.max_targets, len(categories))
            chosen = rng.sample(categories, num_categories)
        else:
            chosen = [singles.pop()]
        key = frozenset(category.name for category in chosen)
        if key not in asked and chosen:
            asked.add(key)
            conversations.append(_present_conversation(regions, {category: present[category] for category in chosen}, options, rng))
    return conversations


def _present_conversation(
    regions: Sequence[Region], chosen: Mapping[Category, Sequence[int]], options: ReferringOptions, rng: random.Random
) -> Conversation:
    phrases: list[str] = []
    targets: list[list[int]] = []
    names = {category: rng.choice(category.phrases) for category in chosen}
    budget = options.max_targets
    for position, (category, indices) in enumerate(chosen.items()):
        still_to_come = len(chosen) - position - 1  # each of them needs at least one target
        if len(indices) <= budget - still_to_come:
            ordered = sorted(indices, key=lambda index: (regions[index]["box_xywh"][0], regions[index]["box_xywh"][1], index))
            targets += [[index] for index in ordered]
            phrases += instance_phrases([names[category]] * len(ordered))
            budget -= len(ordered)
        else:
            targets.append(sorted(indices))
            phrases.append(f"every {names[category]}")
            budget -= 1
    (first, *others) = chosen
    if not others and first.definition and rng.random() < options.definition_share:
        question = rng.choice(DEFINITION_QUESTIONS).replace(NAMES, first.definition)
    else:
        question = question_for([names[category] for category in chosen], "referring", rng)
    return Conversation(question=question, answer=answer_for(phrases, rng), targets=targets, task="referring")


def _absent_conversation(category: Category, rng: random.Random) -> Conversation:
    names = [rng.choice(category.phrases)]
    return Conversation(question=question_for(names, "referring", rng), answer=absent_answer_for(names, rng), targets=[], task="referring")
