"""sources/semantic.py"""

from collections import Counter

import numpy as np
import pytest

from pixellm.data.prompts import fill_conversation
from pixellm.data.schema import Region, build_region
from pixellm.data.sources.ade20k import Ade20kSource
from pixellm.data.sources.semantic import build_semantic
from pixellm.errors import RowError
from pixellm.masks import mask_to_rle

NAMES = ["wall", "floor", "flag", "lamp", "sky", "tree", "door"]


def source(**keys: int) -> Ade20kSource:
    return Ade20kSource(input="unused", split="train", **keys)


def regions_of(names: list[str], ignore: bool = False) -> list[Region]:
    return [build_region(mask_to_rle(np.ones((2, 2), dtype=bool)), name, ignore=ignore) for name in names]


def test_each_class_is_asked_for_once_before_any_is_asked_for_again() -> None:
    for image_id in map(str, range(50)):
        conversations = build_semantic(regions_of(NAMES), source(questions_per_photo=20), image_id)
        assert all(1 <= len(each["targets"]) <= 3 and each["task"] == "semantic" for each in conversations)
        assert len({frozenset(map(tuple, each["targets"])) for each in conversations}) == len(conversations)
        asked = [index for each in conversations for (index,) in each["targets"]]
        assert sorted(asked[:len(NAMES)]) == list(range(len(NAMES)))


def test_a_question_has_one_to_three_classes_in_like_shares() -> None:
    sizes = Counter(len(each["targets"]) for image_id in range(300) for each in build_semantic(regions_of(NAMES), source(), str(image_id)))
    assert set(sizes) == {1, 2, 3} and min(sizes.values()) > 0.2 * sizes.total()


def test_the_regions_of_a_class_are_one_target_and_ignored_ones_are_none() -> None:
    regions = regions_of(["dog", "cat", "dog"]) + regions_of(["dog", "bird"], ignore=True)
    conversations = build_semantic(regions, source(questions_per_photo=20), "1")
    assert {tuple(target) for each in conversations for target in each["targets"]} == {(0, 2), (1,)}


def test_withheld_classes_are_not_asked_for() -> None:
    conversations = build_semantic(regions_of(["dog", "cat"]), source(), "1", withheld={"dog"})
    assert [each["targets"] for each in conversations] == [[[1]]]
    with pytest.raises(RowError, match="nothing_to_ask"):
        build_semantic(regions_of(["dog"]), source(), "1", withheld={"dog"})


def test_the_draw_depends_on_seed_and_image_only() -> None:
    first = build_semantic(regions_of(NAMES), source(), "1")
    assert first == build_semantic(regions_of(NAMES), source(), "1")
    assert first != build_semantic(regions_of(NAMES), source(), "2")
    assert first != build_semantic(regions_of(NAMES), source(seed=1), "1")


def test_the_text_names_the_classes_that_are_asked_for() -> None:
    regions = regions_of(NAMES)
    for conversation in build_semantic(regions, source(), "1"):
        question, answer = fill_conversation(conversation, regions, ("seed", 1))
        names = [NAMES[index] for (index,) in conversation["targets"]]
        assert all(name in question.lower() for name in names)
        assert all(name in answer.lower() for name in names) and answer.count("{seg}") == len(names)
