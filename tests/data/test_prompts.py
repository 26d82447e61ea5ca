"""prompts.py: text with one `{seg}` per target, the same for the same key."""

import random

import pytest

from pixellm.data import prompts
from pixellm.data.schema import Conversation
from pixellm.errors import RowError
from tests.data.rows import make_row

REGIONS = make_row()["regions"]


def conversation(question: str | None = None, answer: str | None = None, targets: list[list[int]] | None = None) -> Conversation:
    return Conversation(question=question, answer=answer, targets=[[0], [1]] if targets is None else targets, task="referring")


def test_stored_text_is_kept_with_its_braces() -> None:
    assert prompts.fill_conversation(conversation("a {x}?", "{y} {seg} {seg}"), REGIONS, 0) == ("a {x}?", "{y} {seg} {seg}")


def test_drawn_text_depends_on_the_key_alone() -> None:
    texts = [prompts.fill_conversation(conversation(), REGIONS, (7, 0, f"row{number}")) for number in range(60)]
    assert texts == [prompts.fill_conversation(conversation(), REGIONS, (7, 0, f"row{number}")) for number in range(60)]
    assert len({question for question, _ in texts}) == len(prompts.QUESTIONS["referring"])
    for question, answer in texts:
        assert "cat and dog" in question and "{" not in question
        assert answer.count("{seg}") == 2 and answer.index("cat {seg}") < answer.index("dog {seg}")
    assert {"the brown dog {seg}" in answer for _, answer in texts} == {True, False}


def test_targets_that_share_a_name_are_numbered() -> None:
    assert prompts.instance_phrases(["cat", "dog", "cat"]) == ["the first cat", "the dog", "the second cat"]
    assert prompts.instance_phrases(["cat"] * 13)[-1] == "cat number 13"


def test_a_union_of_two_categories_is_one_phrase() -> None:
    _, answer = prompts.fill_conversation(conversation("Which?", targets=[[0, 1]]), REGIONS, 1)
    assert answer.count("{seg}") == 1 and "dog {seg}" in answer and "cat and" in answer


def test_every_template_has_its_place() -> None:
    questions = [text for texts in prompts.QUESTIONS.values() for text in texts]
    for text in [*questions, *prompts.DEFINITION_QUESTIONS, *prompts.ABSENT_ANSWERS]:
        assert text.count(prompts.NAMES) == 1 and "{seg}" not in text
    assert all(answer.count(prompts.PARTS) == 1 for answer in prompts.ANSWERS)


def test_names_with_braces_do_no_harm() -> None:
    rng = random.Random(0)
    assert "{names} {0}" in prompts.question_for(["{names} {0}"], "semantic", rng)
    assert prompts.answer_for(["{parts}"], rng).count("{seg}") == 1
    assert "a, b or c" in prompts.absent_answer_for(["a", "b", "c"], rng)


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(RowError, match="no_template"):
        prompts.fill_conversation(conversation(targets=[]), REGIONS, 0)
    with pytest.raises(RowError, match="no_template"):
        prompts.question_for(["cat"], "reasoning", random.Random(0))
