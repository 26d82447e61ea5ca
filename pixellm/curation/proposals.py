"""Questions as a model proposes them, and what is checked before one is taken. Knows no endpoint: text and regions only."""

import re
from collections.abc import Collection, Iterable
from itertools import pairwise

from pydantic import ValidationError

from pixellm.data.schema import SEG, Conversation, Region, validate_conversation
from pixellm.errors import RowError
from pixellm.settings import StrictModel

MIN_TARGETS = 2
MAX_SIMILARITY = 0.6  # "Which of these would you use to cut bread?" with "could" for "would" has 0.6, with "slice a cake" at its end 0.55

_WORD = re.compile(r"[^\W_]+")
# Two or more numbers in a row or in brackets, a number in square brackets, and a number after what our prompts call things by.
_LEAK = re.compile(r"\d+(\.\d+)?\s*[,;x×]\s*\d+|\[\s*\d+|#\s*\d+|\b(ids?|box(es)?|bbox|object|instance|region|target)\s*[:=#(\[]?\s*\d+"
                   r"|\bbounding box|\bbbox\b|\bcoordinates?\b|\d\s*(px\b|pixels?\b)", re.IGNORECASE)
_FILLERS = {"a", "an", "the", "this", "that", "some", "one", "of"}


class Target(StrictModel):
    """`id` is the index of a region, `description` the phrase that names it in the answer."""

    id: int
    description: str


class Proposal(StrictModel):
    """One question; `answer` has a `{seg}` for each target, in their order."""

    question: str
    answer: str
    targets: list[Target]


class Proposals(StrictModel):
    """What a model is asked for."""

    questions: list[Proposal]


def parse_proposals(content: str) -> list[Proposal]:
    """Out of a model's answer, also where it is fenced as code. Raises RowError `not_json`."""
    text = content.strip()
    if text.startswith("```"):
        text = text.strip("`").removeprefix("json")
    try:
        return Proposals.model_validate_json(text).questions
    except ValidationError as error:
        place, message = ".".join(map(str, error.errors()[0]["loc"])), error.errors()[0]["msg"]
        raise RowError("not_json", f"the answer is not JSON of the form asked for: {place} {message}") from None


def check_proposal(proposal: Proposal, regions: list[Region], listed: Collection[int], accepted: Iterable[Proposal],
                   max_similarity: float) -> None:
    """Raises RowError with the first thing that is wrong: those of `validate_conversation`, and

    `unknown_instance` (an id that is not `listed`), `too_few_targets`, `repeated_target`, `leak` (a box, an id or a number of pixels in a
    text), `bare_description` (no more than the name of the class), `near_duplicate` (see `similarity`) of one that is `accepted`.
    """
    ids = [target.id for target in proposal.targets]
    unknown = [each for each in ids if each not in listed]
    if unknown:
        raise RowError("unknown_instance", f"no thing of the list has the id {unknown[0]}")
    if len(ids) < MIN_TARGETS:
        raise RowError("too_few_targets", f"found {len(ids)} targets, at least {MIN_TARGETS} are needed")
    if len(set(ids)) < len(ids):
        raise RowError("repeated_target", f"the same thing twice among the targets {ids}")
    validate_conversation(Conversation(question=proposal.question, answer=proposal.answer, targets=[[each] for each in ids],
                                       task="reasoning"), 0, regions)
    if not words(proposal.answer.replace(SEG, " ")):
        raise RowError("empty_text", f"the answer has no words beside its {SEG}")
    for text in (proposal.question, proposal.answer, *(target.description for target in proposal.targets)):
        if leaked := _LEAK.search(text):
            raise RowError("leak", f"a text must hold no box, id or number of pixels, found {leaked.group()!r} in {text!r}")
    for target in proposal.targets:
        category = regions[target.id]["category"]
        if not set(_stems(target.description)) - set(_stems(category)):
            raise RowError("bare_description", f"{target.description!r} says no more than the name of the class, {category!r}")
    for other in accepted:
        if (found := similarity(proposal.question, other.question)) >= max_similarity:
            raise RowError("near_duplicate", f"{found:.2f} similar to {other.question!r}, allowed is less than {max_similarity:g}")


def similarity(a: str, b: str) -> float:
    """Jaccard index, in [0, 1], of the sets of pairs of neighbouring words, without case and punctuation; a lone word is its own pair."""
    pairs_a, pairs_b = (_word_pairs(text) for text in (a, b))
    return len(pairs_a & pairs_b) / max(1, len(pairs_a | pairs_b))


def words(text: str) -> list[str]:
    """In lower case, without punctuation."""
    return _WORD.findall(text.lower())


def _word_pairs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return set(pairwise(found)) or {tuple(found)}


def _stems(text: str) -> list[str]:
    """Words that say something, without the ending of a plural."""
    return [word.removesuffix("s") for word in words(text) if word not in _FILLERS]
