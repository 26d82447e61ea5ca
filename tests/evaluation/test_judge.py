"""Who judges what: the text with descriptions, the offline judge's words, and a language model behind a real HTTP server."""

import json

import pytest

from pixellm.curation.config import EndpointConfig
from pixellm.evaluation.judge import EndpointJudge, OfflineJudge, judge_answers, to_item, word_f1
from tests.evaluation.test_report import CORNER, LEFT, RIGHT, answered


def item_of(answer):
    return to_item(answer.record, answer.score)


def test_the_true_description_stands_after_the_words_of_each_matched_mask():
    spans = ((0, 7), (9, 16), (21, 28))
    item = item_of(answered("0", [RIGHT, CORNER, LEFT], [LEFT, RIGHT], text="the cat, a speck and the dog.", spans=spans))
    assert item.text == "the cat [the dog], a speck and the dog [the cat]."
    assert item.pairs == (("the cat", "the dog"), ("the dog", "the cat"))
    assert item.expected == "the cat and the dog"


@pytest.mark.parametrize("one, other, f1", [
    ("the red circle", "the red circle", 1), ("a red circle", "the Red circles", 1), ("the red circle", "the blue circle", 0.5),
    ("the cat", "the dog", 0), ("", "the dog", 0), ("the", "a", 0)])
def test_words_in_common(one, other, f1):
    assert word_f1(one, other) == word_f1(other, one) == f1


def test_every_row_has_a_score():
    answers = [answered("0", [LEFT, CORNER], [LEFT]), answered("1", [], [LEFT]), answered("2", [], [], "none."), answered("3", [LEFT], [])]
    judgements = judge_answers(OfflineJudge(), [(each.record, each.score) for each in answers])
    assert judgements == [(10.0, 0.0), (0.0,), (10.0,), (0.0,)]
    assert [len(each) for each in judgements] == [len(answer.score.ious) for answer in answers]


def test_wrong_words_have_the_worst_score():
    swapped = answered("0", [RIGHT, LEFT], [LEFT, RIGHT])
    assert judge_answers(OfflineJudge(), [(swapped.record, swapped.score)]) == [(1.0, 1.0)]


def endpoint(url: str) -> EndpointConfig:
    return EndpointConfig(url=url, model="judge", api_key_env=None, request_timeout_s=20, total_timeout_s=60)


def test_a_language_model_is_asked_once_for_each_answer(chat_server, tmp_path):
    chat_server.replies = [json.dumps({"scores": [7, 3]})]
    answers = [answered("0", [LEFT, RIGHT], [LEFT, RIGHT])]
    for _ in range(2):
        judge = EndpointJudge(endpoint(chat_server.url), str(tmp_path))
        assert judge_answers(judge, [(each.record, each.score) for each in answers]) == [(7.0, 3.0)]
    assert len(chat_server.bodies) == 1 and judge.name == "judge, prompt judge.1"
    prompt = chat_server.bodies[0]["messages"][0]["content"]
    assert "the cat [the cat] and the dog [the dog]" in prompt and "who is <there>?" in prompt and "(2 numbers)" in prompt
    assert "{" not in prompt.replace('{"scores": [...]}', "")


@pytest.mark.parametrize("wrong", ["no idea", '{"scores": [7]}', '{"scores": [7, 11]}', '{"scores": [0, 5]}', '{"scores": [7.5, 3]}'])
def test_a_wrong_answer_is_sent_back_once(chat_server, tmp_path, wrong):
    answer = answered("0", [LEFT, RIGHT], [LEFT, RIGHT])
    chat_server.replies = [wrong, json.dumps({"scores": [2, 9]})]
    assert judge_answers(EndpointJudge(endpoint(chat_server.url), str(tmp_path / "a")), [(answer.record, answer.score)]) == [(2.0, 9.0)]
    assert [turn["role"] for turn in chat_server.bodies[1]["messages"]] == ["user", "assistant", "user"]
    chat_server.replies = [wrong]
    assert judge_answers(EndpointJudge(endpoint(chat_server.url), str(tmp_path / "b")), [(answer.record, answer.score)]) == [None]
