"""proposals.py: what is taken and what is not."""

import json
from typing import Any

import pytest

from pixellm.curation.proposals import Proposal, Target, check_proposal, parse_proposals, similarity
from pixellm.errors import RowError
from tests.data.rows import make_row

REGIONS = make_row()["regions"]  # a cat and a dog
GOOD: dict[str, Any] = {
    "question": "Who would wake up first?", "answer": "The sleeping cat {seg} and the brown dog by the door {seg} would both hear it.",
    "targets": [{"id": 0, "description": "the sleeping cat"}, {"id": 1, "description": "the brown dog by the door"}]}


def targets(*pairs: tuple[int, str]) -> list[dict[str, Any]]:
    return [{"id": number, "description": text} for number, text in pairs]


def check(listed=(0, 1), accepted=(), **changes: Any) -> None:
    check_proposal(Proposal.model_validate(GOOD | changes), REGIONS, listed, accepted, max_similarity=0.6)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"targets": targets((0, "the sleeping cat"), (7, "the bird above"))}, "unknown_instance"),
    ({"listed": (0,)}, "unknown_instance"),
    ({"targets": targets((0, "the sleeping cat")), "answer": "The sleeping cat {seg}."}, "too_few_targets"),
    ({"targets": []}, "too_few_targets"),
    ({"targets": targets((0, "the sleeping cat"), (0, "the cat again"))}, "repeated_target"),
    ({"answer": "The sleeping cat {seg} and the brown dog."}, "seg_count_mismatch"),
    ({"answer": "A {seg}, b {seg}, c {seg}."}, "seg_count_mismatch"),
    ({"question": "Who is {seg}?"}, "seg_in_question"),
    ({"question": " "}, "empty_text"),
    ({"answer": "{seg}, {seg}."}, "empty_text"),
    ({"question": "Who lies at [12, 30, 40, 50]?"}, "leak"),
    ({"answer": "The sleeping cat (12, 30) {seg} and the brown dog {seg}."}, "leak"),
    ({"answer": "Object 0 {seg} and object 1 {seg}."}, "leak"),
    ({"answer": "The cat #0 {seg} and the dog {seg}."}, "leak"),
    ({"question": "Who is in the same bounding box?"}, "leak"),
    ({"targets": targets((0, "the cat 40 px wide"), (1, "the brown dog"))}, "leak"),
    ({"targets": targets((0, "the cat"), (1, "the brown dog"))}, "bare_description"),
    ({"targets": targets((0, "the sleeping cat"), (1, "Dogs"))}, "bare_description"),
    ({"targets": targets((0, "the sleeping cat"), (1, " "))}, "bare_description"),
    ({"accepted": [Proposal.model_validate(GOOD)], "question": "Who would wake up first?!"}, "near_duplicate"),
])
def test_what_is_rejected(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError) as caught:
        check(**changes)
    assert caught.value.reason == reason


@pytest.mark.parametrize("changes", [
    {}, {"question": "Who would need more than 2 hours?"}, {"answer": "The cat in the box {seg} and the dog with the number 12 {seg}."},
    {"accepted": [Proposal.model_validate(GOOD | {"question": "Who could be out in the rain?"})]}])
def test_what_is_taken(changes: dict[str, Any]) -> None:
    check(**changes)


def test_similarity_is_of_word_pairs() -> None:
    bread = "Which of these would you use to cut bread?"
    assert similarity(bread, "which of these, would you use to cut BREAD") == 1
    assert similarity(bread, "Which of these could you use to cut bread?") == pytest.approx(6 / 10)
    assert similarity(bread, "Which of these would you use to slice a cake?") == pytest.approx(6 / 11)
    assert similarity(bread, "What if it rained?") == similarity("Who?", "Why?") == 0 and similarity("Who?", "who") == 1


@pytest.mark.parametrize("content", [json.dumps({"questions": [GOOD]}), "```json\n" + json.dumps({"questions": [GOOD]}) + "\n```"])
def test_json_also_in_a_fence(content: str) -> None:
    assert parse_proposals(content) == [Proposal(question=GOOD["question"], answer=GOOD["answer"],
                                                 targets=[Target.model_validate(each) for each in GOOD["targets"]])]


@pytest.mark.parametrize("content", [
    "", "Sorry, no.", json.dumps({"questions": [GOOD]})[:60], json.dumps({"questions": [{"question": "Q"}]}), json.dumps([GOOD]),
    json.dumps({"questions": [GOOD | {"more": 1}]})])
def test_other_text_is_not(content: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_proposals(content)
    assert caught.value.reason == "not_json"
