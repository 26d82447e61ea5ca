"""referring.py: questions whose answers hold."""

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.data.schema import build_region
from pixellm.data.sources.referring import Category, ReferringOptions, build_referring
from pixellm.masks import mask_to_rle

DOG, CAT, HORSE = Category("dog", ("dog", "hound")), Category("cat", ("cat",), "a small feline"), Category("horse", ("horse",))


def make_regions(count: int) -> list:
    """Regions from right to left, one column each."""
    regions = []
    for column in reversed(range(count)):
        mask = np.zeros((4, count), dtype=bool)
        mask[:, column] = True
        regions.append(build_region(mask_to_rle(mask), "any"))
    return regions


def build(num_dogs: int, num_cats: int, seed: int = 0, absent: tuple[Category, ...] = (), **options) -> list:
    present = {category: indices for category, indices in
               ((DOG, list(range(num_dogs))), (CAT, list(range(num_dogs, num_dogs + num_cats)))) if indices}
    return build_referring(make_regions(num_dogs + num_cats), present, absent, ReferringOptions(**options), random.Random(seed))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 8))
def test_every_conversation_keeps_the_limits_and_is_complete(dogs: int, cats: int, seed: int, max_targets: int, questions: int) -> None:
    conversations = build(dogs, cats, seed, (HORSE,), max_targets=max_targets, questions_per_photo=questions)
    assert len(conversations) <= questions
    assert len({each["question"] for each in conversations}) == len(conversations)
    for each in conversations:
        assert each["task"] == "referring"
        assert each["answer"].count("{seg}") == len(each["targets"]) <= max_targets
        named = {index for target in each["targets"] for index in target}
        expected: set[int] = set()
        if "dog" in each["question"] or "hound" in each["question"]:
            expected |= set(range(dogs))
        if "cat" in each["question"] or "feline" in each["question"]:
            expected |= set(range(dogs, dogs + cats))
        assert named == expected
        assert ("horse" in each["question"]) == (not each["targets"])


def test_instances_come_from_left_to_right_each_with_its_own_mask() -> None:
    (conversation,) = build(3, 0, questions_per_photo=1, definition_share=0)
    assert conversation["targets"] == [[2], [1], [0]]
    answer = conversation["answer"].lower()
    assert answer.index("first") < answer.index("second") < answer.index("third")


def test_too_many_instances_become_one_union() -> None:
    (conversation,) = build(3, 0, questions_per_photo=1, max_targets=2)
    assert conversation["targets"] == [[0, 1, 2]] and "very " in conversation["answer"]


def test_all_kinds_of_questions_appear() -> None:
    conversations = [each for seed in range(40) for each in build(2, 1, seed, (HORSE,))]
    questions = [each["question"] for each in conversations]
    assert any("hound" in question for question in questions)
    assert any(" and " in question for question in questions)
    assert any("horse" in question for question in questions)
    assert any("feline" in question for question in questions)


def test_shares_of_zero_and_one() -> None:
    assert all(each["targets"] for each in build(2, 2, 1, (HORSE,), absent_share=0))
    assert build(2, 2, 1, (HORSE,), absent_share=1, questions_per_photo=1)[0]["targets"] == []
    assert build(0, 0) == []
