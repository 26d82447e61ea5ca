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
    for text in [*questions, *prompts.SEVERAL_QUESTIONS, *prompts.DEFINITION_QUESTIONS, *prompts.ABSENT_ANSWERS, *prompts.JOINT_ANSWERS]:
        assert text.count(prompts.NAMES) == 1 and "{seg}" not in text
    assert all(answer.count(prompts.PARTS) == 1 for answer in prompts.ANSWERS)
    assert all(answer.count(prompts.MASKS) == 1 for answer in prompts.JOINT_ANSWERS)
    assert all(answer.count("{seg}") == 1 for answer in prompts.UNNAMED_ANSWERS)
    for text in [*prompts.MASK_REQUESTS, *prompts.EXPLANATION_REQUESTS]:
        assert text.count(prompts.SENTENCE) == 1 and "{seg}" not in text


@pytest.mark.parametrize("task", ["semantic", "reasoning"])
def test_half_of_the_answers_with_several_targets_are_joint(task: str) -> None:
    several = Conversation(question="Which?", answer=None, targets=[[0], [1]], task=task)
    answers = [prompts.fill_conversation(several, REGIONS, key)[1] for key in range(400)]
    assert all(answer.count("{seg}") == 2 and answer.lower().index("the cat") < answer.index("dog") for answer in answers)
    joint = sum("{seg} and {seg}" in answer for answer in answers)
    assert 160 <= joint <= 240  # 200 expected, standard deviation 10
    single = Conversation(question="Which?", answer=None, targets=[[0, 1]], task=task)
    assert all("dog {seg}" in prompts.fill_conversation(single, REGIONS, key)[1] for key in range(20))


def test_several_classes_have_questions_of_their_own() -> None:
    questions = {prompts.question_for(["cat", "dog"], "semantic", random.Random(key)) for key in range(200)}
    assert len(questions) == len(prompts.QUESTIONS["semantic"]) + len(prompts.SEVERAL_QUESTIONS)
    assert len({prompts.question_for(["cat"], "semantic", random.Random(key)) for key in range(200)}) == len(prompts.QUESTIONS["semantic"])


def test_a_sentence_gets_a_request_for_a_mask_or_for_the_reasons_too() -> None:
    rng = random.Random(0)
    for sentence, start in (("Who {x}?", "Who {x}? "), ("find it", "find it. ")):
        for explain, requests in ((False, prompts.MASK_REQUESTS), (True, prompts.EXPLANATION_REQUESTS)):
            drawn = {prompts.reasoning_question_for(sentence, rng, explain) for _ in range(100)}
            assert len(drawn) == len(requests) and all(question.startswith(start) for question in drawn)


def test_names_with_braces_do_no_harm() -> None:
    rng = random.Random(0)
    assert "{names} {0}" in prompts.question_for(["{names} {0}"], "semantic", rng)
    assert prompts.answer_for(["{parts}"], rng).count("{seg}") == 1
    assert "{masks}" in prompts.joint_answer_for(["{masks}", "a"], rng)
    assert "a, b or c" in prompts.absent_answer_for(["a", "b", "c"], rng)


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(RowError, match="no_template"):
        prompts.fill_conversation(conversation(targets=[]), REGIONS, 0)
    with pytest.raises(RowError, match="no_template"):
        prompts.question_for(["cat"], "reasoning", random.Random(0))
