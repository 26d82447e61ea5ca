"""Our question and answer templates, and the filling of conversations that carry none. Text only: no pixels, no torch.

Templates avoid plurals ("every knife", not "all knives"), so that any category name fits. Placeholders are replaced with `str.replace`,
never `format`: names and questions may hold braces.
"""

import random
from collections import Counter
from collections.abc import Sequence

from pixellm.data.schema import SEG, Conversation, Region
from pixellm.errors import RowError

NAMES, PARTS, MASKS, SENTENCE = "{names}", "{parts}", "{masks}", "{sentence}"
DESCRIPTION_PROBABILITY = 0.9  # the paper's share of answers that use a region's description, not its category
JOINT_PROBABILITY = 0.5  # the paper's share of answers that name all targets before the masks of all
JOINT_TASKS = ("semantic", "reasoning")  # in a referring answer equal names are numbered: each mask stands right after its own

QUESTIONS: dict[str, tuple[str, ...]] = {
    "semantic": (
        "Can you segment the {names} in this photo?",
        "Segment the {names}.",
        "Which part of the photo shows the {names}? Please mark it.",
        "Please give the mask of the {names} in this photo.",
        "Where is the {names}? Answer with a mask.",
    ),
    "referring": (
        "Segment every {names} in this photo.",
        "Point out every {names} that you can see.",
        "Where is each {names}? Mark it in the photo.",
        "Find every {names} here and give its mask.",
        "Is there any {names} in this photo? Show me where.",
        "Please mark each {names}.",
    ),
}
SEVERAL_QUESTIONS = (
    "Segment each of these: {names}.",
    "Please mark the following in this photo: {names}.",
    "I need one mask for each of: {names}.",
    "Where in the photo are these to be found: {names}?",
)
MASK_REQUESTS = (
    "{sentence} Please answer with a mask.",
    "{sentence} Segment it in the photo.",
    "{sentence} Mark the place in the photo.",
    "{sentence} Show me by outlining it.",
)
EXPLANATION_REQUESTS = (
    "{sentence} Mark it, and say why.",
    "{sentence} Please segment it and give your reasons.",
    "{sentence} Show it with a mask and explain your choice.",
    "{sentence} Answer with a mask and a short explanation.",
)
DEFINITION_QUESTIONS = (
    "Which things in this photo fit this definition: \"{names}\"?",
    "Mark everything here that one would call \"{names}\".",
)
ANSWERS = (
    "{parts}.",
    "Sure: {parts}.",
    "I can see {parts}.",
    "Here you are: {parts}.",
    "This photo shows {parts}.",
)
JOINT_ANSWERS = (
    "{names}: {masks}.",
    "Here you see {names}: {masks}.",
    "My answer is {names}, marked in this order: {masks}.",
    "The photo shows {names}; their masks are {masks}.",
)
UNNAMED_ANSWERS = (
    "It is here {seg}.",
    "This is it {seg}.",
    "I have marked it {seg}.",
    "You find it here {seg}.",
)
ABSENT_ANSWERS = (
    "There is no {names} in this photo.",
    "I cannot see any {names} here.",
    "This photo shows no {names}.",
)
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth")


def question_for(categories: Sequence[str], task: str, rng: random.Random) -> str:
    """A question about `categories`. Raises RowError `no_template` for a task whose questions cannot be made from names alone."""
    if task not in QUESTIONS:
        raise RowError("no_template", f"a question of task {task!r} cannot be drawn, known are {', '.join(QUESTIONS)}; give its text")
    several = SEVERAL_QUESTIONS if task == "semantic" and len(categories) > 1 else ()
    return rng.choice(QUESTIONS[task] + several).replace(NAMES, join_words(categories))


def reasoning_question_for(sentence: str, rng: random.Random, explain: bool = False) -> str:
    """`sentence`, which may be a statement or a question, with the request for a mask, and with `explain` for the reasons too."""
    sentence = sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."
    return rng.choice(EXPLANATION_REQUESTS if explain else MASK_REQUESTS).replace(SENTENCE, sentence)


def answer_for(phrases: Sequence[str], rng: random.Random) -> str:
    """An answer that names each phrase with its `{seg}` right after it: "The first dog {seg} and the cat {seg}."."""
    answer = rng.choice(ANSWERS).replace(PARTS, join_words([f"{phrase} {SEG}" for phrase in phrases]))
    return answer[0].upper() + answer[1:]


def joint_answer_for(phrases: Sequence[str], rng: random.Random) -> str:
    """An answer that names all phrases, then has their `{seg}` in the same order: "The dog and the cat: {seg} and {seg}."."""
    answer = rng.choice(JOINT_ANSWERS).replace(MASKS, join_words([SEG] * len(phrases))).replace(NAMES, join_words(phrases))
    return answer[0].upper() + answer[1:]


def unnamed_answer_for(rng: random.Random) -> str:
    """An answer with one `{seg}` for a thing whose name is not known."""
    return rng.choice(UNNAMED_ANSWERS)


def absent_answer_for(categories: Sequence[str], rng: random.Random) -> str:
    """An answer without `{seg}`: none of `categories` is in the photo."""
    return rng.choice(ABSENT_ANSWERS).replace(NAMES, join_words(categories, last=" or "))


def instance_phrases(names: Sequence[str]) -> list[str]:
    """One phrase per target: "the dog", or "the first dog", "the second dog" where a name comes more than once."""
    totals, seen = Counter(names), Counter[str]()
    phrases = []
    for name in names:
        seen[name] += 1
        if totals[name] == 1:
            phrases.append(f"the {name}")
        elif seen[name] <= len(_ORDINALS):
            phrases.append(f"the {_ORDINALS[seen[name] - 1]} {name}")
        else:
            phrases.append(f"{name} number {seen[name]}")
    return phrases


def join_words(words: Sequence[str], last: str = " and ") -> str:
    """Join as one does in a sentence: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + last + words[-1]


def fill_conversation(conversation: Conversation, regions: Sequence[Region], seed_key: object) -> tuple[str, str]:
    """The question and the answer: as stored where they are text, else drawn from the templates.

    `seed_key` is anything with a stable repr, usually (seed, epoch, row id, index): the same key gives the same text on every worker.
    An answer that is drawn puts one `{seg}` per target; where it has several, those of `JOINT_TASKS` are joint with `JOINT_PROBABILITY`.
    Raises RowError `no_template` where the text is missing and cannot be drawn.
    """
    question, answer, targets = conversation["question"], conversation["answer"], conversation["targets"]
    if question is not None and answer is not None:
        return question, answer
    if not targets:
        raise RowError("no_template", "a conversation without targets needs its question and its answer as text")
    rng = random.Random(repr(seed_key))
    if question is None:
        names = [regions[index]["category"] for target in targets for index in target]
        question = question_for(list(dict.fromkeys(names)), conversation["task"], rng)
    if answer is None:
        phrases = instance_phrases([_target_name(target, regions, rng) for target in targets])
        joint = len(phrases) > 1 and conversation["task"] in JOINT_TASKS and rng.random() < JOINT_PROBABILITY
        answer = joint_answer_for(phrases, rng) if joint else answer_for(phrases, rng)
    return question, answer


def _target_name(target: Sequence[int], regions: Sequence[Region], rng: random.Random) -> str:
    described = rng.random() < DESCRIPTION_PROBABILITY
    names = [(regions[index]["description"] if described else None) or regions[index]["category"] for index in target]
    return join_words(list(dict.fromkeys(names)))
