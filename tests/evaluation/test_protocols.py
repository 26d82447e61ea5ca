"""What each protocol counts, against sums by hand on masks that can be counted."""

import pytest

from pixellm.evaluation.breakdowns import by_num_targets, by_size, count_confusion, target_ious
from pixellm.evaluation.figures import build_figures
from pixellm.evaluation.protocols import HEADLINES, PROTOCOLS, terms
from tests.evaluation.test_report import CORNER, LEFT, RIGHT, answered, box

HALF = box(2, 1, 5, 6)  # 15 of LEFT's 30 pixels


def figures(protocol, *answers, judgements=None):
    judgements = judgements or [None] * len(answers)
    found = build_figures([list(terms(protocol, answer.record, answer.score, judgement))
                           for answer, judgement in zip(answers, judgements, strict=True)])
    return {name: figure.value() for name, figure in found.items()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_answer_has_one_everywhere(protocol):
    answers = answered("0", [LEFT, RIGHT], [LEFT, RIGHT]), answered("1", [], [], "none.")
    found = figures(protocol, *answers, judgements=[(10.0, 10.0), (10.0,)])
    assert set(HEADLINES[protocol]) <= set(found)
    assert all(value == 1 for name, value in found.items() if "score" not in name)


def test_muse_counts_rows_and_weighs_them_by_the_judge():
    found = figures("muse", answered("0", [HALF, CORNER], [LEFT]), judgements=[(6.0, 0.0)])
    assert found["giou"] == pytest.approx(0.5 / 2) and found["ciou"] == pytest.approx(15 / (30 + 4))
    assert found["judged_giou"] == pytest.approx(0.6 * 0.5 / 2) and found["judged_ciou"] == pytest.approx(0.6 * 15 / (30 + 4))
    assert found["judge_score"] == 3.0
    assert found["union_giou"] == found["union_ciou"] == pytest.approx(15 / 34)
    assert found["giou_few"] == found["giou"] and "giou_many" not in found


def test_an_answer_that_was_not_judged_is_in_no_judged_figure():
    found = figures("muse", answered("0", [LEFT], [LEFT]), answered("1", [], [LEFT]), judgements=[(5.0,), None])
    assert found["judged_giou"] == 0.5 and found["giou"] == 0.5


@pytest.mark.parametrize("protocol", ["referring", "reason_seg"])
def test_referring_takes_the_masks_together(protocol):
    found = figures(protocol, answered("0", [HALF, box(5, 1, 8, 6)], [LEFT]), answered("1", [], [RIGHT]))
    assert found["giou"] == 0.5 and found["ciou"] == pytest.approx(30 / (30 + 36))


def test_generalised_referring_counts_questions_without_targets():
    found = figures("generalised_referring", answered("0", [LEFT], []), answered("1", [], [], "none."), answered("2", [], [LEFT]),
                    answered("3", [LEFT], [LEFT]))
    assert (found["n_acc"], found["t_acc"]) == (0.5, 0.5)
    assert found["giou"] == pytest.approx((0 + 1 + 0 + 1) / 4) and found["ciou"] == pytest.approx(30 / 90)


def test_semantic_is_a_mean_over_classes():
    swapped = answered("0", [RIGHT, LEFT], [LEFT, RIGHT], text="the dog and the cat", spans=((0, 7), (12, 19)))
    assert figures("semantic", swapped)["miou"] == 1, "a mask is of the class that its words name"
    places = answered("1", [LEFT, RIGHT], [LEFT, RIGHT], text="this and that", spans=((0, 4), (9, 13)))
    assert figures("semantic", places)["miou"] == 1, "else of the class at its place"
    half = answered("2", [HALF], [LEFT, RIGHT], text="the cat", spans=((0, 7),))
    assert figures("semantic", half)["miou"] == pytest.approx((0.5 + 0) / 2)
    assert figures("semantic", half, half)["miou"] == pytest.approx(0.25), "pixels of a class are summed over photos"


def test_breakdowns():
    answers = [answered("0", [HALF, CORNER], [LEFT]), answered("1", [RIGHT], [LEFT, RIGHT]), answered("2", [], [])]
    scores = [answer.score for answer in answers]
    assert target_ious(scores[0]) == [0.5] and target_ious(scores[1]) == [0.0, 1.0] and target_ious(scores[2]) == []
    confusion = count_confusion(scores)
    assert confusion[1][2] == confusion[2][1] == confusion[0][0] == 1 and sum(map(sum, confusion)) == 3
    assert by_size((answer.score, answer.record["true_masks"]) for answer in answers)["small"] == {"count": 3, "iou": 0.5}
    assert by_num_targets(scores) == {"0": {"count": 1, "iou": 1.0}, "1": {"count": 1, "iou": 0.25}, "2": {"count": 1, "iou": 0.5}}
