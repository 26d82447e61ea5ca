"""Choice of examples, colours of words and masks, and the page itself, from an evaluation made without Ray."""

import base64
import io
import json
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pixellm.data.mixture import RowGroup
from pixellm.data.schema import Conversation, build_region
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.drawing import color_of
from pixellm.errors import ResourcesError
from pixellm.evaluation import report as report_module
from pixellm.evaluation.evaluate import EvaluateConfig, Evaluation, ScoredAnswer, fill_row, plan_parts, read_photos
from pixellm.evaluation.metrics import score_question
from pixellm.evaluation.report import build_report, choose_examples, headline, write_report
from pixellm.evaluation.report_page import build_card, color_text
from pixellm.masks import mask_to_rle
from tests.data.rows import make_row


def box(top, left, bottom, right):
    mask = np.zeros((12, 16), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask_to_rle(mask)


LEFT, RIGHT, CORNER = box(2, 1, 8, 6), box(4, 9, 10, 15), box(0, 0, 2, 2)


def answered(image_id, predicted, true, text="the cat and the dog", spans=((0, 7), (12, 19)), question="who is <there>?", **changes):
    phrases = ["the cat {seg}", "the dog {seg}", "the end {seg}"][:len(true)]
    record = {"image_id": image_id, "source": "test", "split": "train", "question_index": 0, "task": "reasoning", "question": question,
              "true_answer": " and ".join(phrases) or "there are none.", "true_masks": list(true),
              "true_categories": ["cat", "dog", "end"][:len(true)], "text": text,
              "spans": [list(span) for span in spans[:len(predicted)]], "masks": list(predicted), "scores": [0.5] * len(predicted),
              "finish_reason": "stop", "num_tokens": 7, "failure": None, "failure_detail": None}
    return ScoredAnswer(record | changes, score_question(predicted, true))


@pytest.fixture
def evaluation(tmp_path):
    manifest = write_shards([make_row(index) for index in range(5)], str(tmp_path / "shards"), ShardOptions(row_group_mb=0.001))
    answers = [answered("0", [LEFT, RIGHT], [LEFT, RIGHT]), answered("1", [RIGHT], [LEFT, RIGHT]), answered("2", [], [], "there are none."),
               answered("3", [LEFT], [], finish_reason="length")]
    failure = answered("4", [], []).record | {"failure": "photo_unreadable", "failure_detail": "cut <off>"}
    config = EvaluateConfig(shards=str(tmp_path / "shards"), model="models/m", output=str(tmp_path / "out"), num_examples=6,
                            attention_examples=0)
    return Evaluation(config, manifest, answers, [failure], num_photos=5, duration_s=1.5, judgements=[None] * len(answers))


def pictures_of(page):
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]


def test_page_holds_figures_words_and_pictures(evaluation, tmp_path):
    page_uri = write_report(evaluation)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page_uri == str(tmp_path / "out" / "report.html")
    assert f"<b>{evaluation.metrics.all.giou:.3f}</b>" in page and "free generation" in page
    assert "who is &lt;there&gt;?" in page and "<there>" not in page
    assert "predicted: nothing marked" in page and "true: nothing to mark" in page
    assert "1 mask too few" in page and "1 mask too many" in page
    assert "cut off" in page and "1 photos were set aside (photo_unreadable: 1)" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "<script" not in page, "the page needs nothing beside it"
    pictures = pictures_of(page)
    assert len(pictures) == 3 * 4 and {picture.size for picture in pictures} == {(384, 288)}


def test_report_json_and_headline_agree(evaluation, tmp_path):
    write_report(evaluation)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == build_report(evaluation) and report["mode"] == headline(evaluation)["mode"] == "free"
    assert report["metrics"]["all"]["giou"] == pytest.approx((1 + 1 + 1 + 0 + 1 + 0) / 6)
    assert headline(evaluation)["giou"] == round(report["metrics"]["all"]["giou"], 4)
    assert report["num_failed_photos"] == 1 and report["num_cut_off"] == 1
    assert report["figures"]["giou"]["value"] == pytest.approx(report["metrics"]["all"]["giou"])
    assert report["figures"]["giou"]["low"] < report["figures"]["giou"]["value"] < report["figures"]["giou"]["high"]
    assert report["count_confusion"][2][:3] == [0, 1, 1] and report["by_num_targets"]["2"] == {"count": 2, "iou": 0.75}
    assert report["by_size"]["small"] == {"count": 4, "iou": 0.75} and report["by_size"]["large"] == {"count": 0, "iou": None}
    table = (tmp_path / "out" / "report.md").read_text()
    assert f"| muse free giou | {report['figures']['giou']['value']:.4f} |" in table
    assert report["failed_photos"][0]["failure_detail"] == "cut <off>"


def test_figures_are_written_before_pictures_that_fail(evaluation, tmp_path, monkeypatch):
    said: list[str] = []
    config = evaluation.config.model_copy(update={"attention_examples": 2})
    evaluation = Evaluation(config, evaluation.manifest, evaluation.answers, [], 5, 1.5, [None] * len(evaluation.answers))

    def run_out_of_memory(*arguments, **options):
        assert (tmp_path / "out" / "report.html").read_text().count("<article>") == 4, "examples come before attention"
        raise ResourcesError("no node has 30 GB")

    monkeypatch.setattr(report_module, "run_task", run_out_of_memory)
    write_report(evaluation, said.append)
    assert said == ["evaluate: the page is without its attention, the figures are whole: ResourcesError: no node has 30 GB"]
    monkeypatch.setattr(report_module, "read_photos", lambda *_: 1 / 0)
    said.clear()
    write_report(evaluation, said.append)
    assert len(said) == 2 and "without its examples" in said[0] and "ZeroDivisionError" in said[0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<article>" not in page and f"<b>{evaluation.metrics.all.giou:.3f}</b>" in page
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == build_report(evaluation)


def test_local_copy_has_the_same_files(evaluation, tmp_path):
    config = evaluation.config.model_copy(update={"local_copy": str(tmp_path / "here")})
    write_report(Evaluation(config, evaluation.manifest, evaluation.answers, [], 5, 1.5, [None] * len(evaluation.answers)))
    for name in ("report.json", "report.html", "report.md", "scores.parquet"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_words_have_the_colour_of_their_masks(evaluation):
    photo = Image.new("RGB", (16, 12), (120, 120, 120))
    card = build_card(photo, answered("0", [RIGHT, LEFT], [LEFT, RIGHT, CORNER]))
    assert re.findall(r"background:rgb\(([\d,]+)\);[^>]*>([^<]+)", card.answer) == [
        (",".join(map(str, color_of(0))), "the cat"), (",".join(map(str, color_of(1))), "the dog")]
    # The true masks take the colours of their matches, the third one of its own.
    assert [name for name, _ in re.findall(r"background:rgb\(([\d,]+)\);[^>]*>([^<]+)", card.expected)] == [
        ",".join(map(str, color_of(index))) for index in (1, 0, 2)]
    for uri, places in ((card.predicted_uri, ((7, 12, 0), (5, 3, 1))), (card.true_uri, ((7, 12, 0), (5, 3, 1), (1, 1, 2)))):
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).astype(float)
        for y, x, index in places:
            middle = picture[y * 24 - 2:y * 24 + 3, x * 24 - 2:x * 24 + 3].mean(axis=(0, 1))
            nearest = min(range(7), key=lambda place: np.abs(middle - (0.35 * 120 + 0.65 * np.array(color_of(place)))).sum())
            assert nearest == index


def test_overlapping_and_missing_phrases():
    shared = color_text("the dogs <here>", [(0, 8), (0, 8)], [0, 1])
    assert shared.count("<mark") == 1 and "box-shadow" in shared and shared.endswith(" &lt;here&gt;")
    assert "rgb(86, 180, 233)" in shared and "rgb(230,159,0)" in shared
    missing = color_text("", [(0, 0)], [2])
    assert missing.count("<mark") == 1 and "&nbsp;" in missing
    assert color_text("plain & simple\0", [], []) == "plain &amp; simple\ufffd"


def test_examples_are_spread_over_photos_and_never_shown_twice():
    answers = [answered(str(index // 4), [LEFT] if index % 3 else [], [LEFT] if index % 5 else []) for index in range(40)]
    chosen = choose_examples(answers, 12, "mixed", seed=0)
    assert {heading: len(some) for heading, some in chosen.items()} == {"random": 4, "worst": 4, "best": 4}
    shown = [id(answer) for some in chosen.values() for answer in some]
    assert len(set(shown)) == 12
    assert all(answer.score.iou == 0 for answer in chosen["worst"])
    assert all(answer.score.iou == 1 and answer.score.num_true for answer in chosen["best"])
    assert all(len({answer.record["image_id"] for answer in some}) == 4 for some in chosen.values())
    assert choose_examples(answers, 12, "mixed", seed=0) == chosen != choose_examples(answers, 12, "mixed", seed=1)


@pytest.mark.parametrize("how", ["random", "worst", "best", "mixed"])
def test_examples_of_few_answers(how):
    answers = [answered("0", [LEFT], [LEFT]), answered("0", [LEFT], [RIGHT])]
    assert sum(map(len, choose_examples(answers, 9, how, seed=0).values())) == 2
    assert choose_examples([], 9, how, seed=0) in ({how: []}, {"random": [], "worst": [], "best": []})



def test_photos_of_chosen_rows_only(evaluation):
    found = read_photos(evaluation.config.shards, {("test", "train", "3"), ("test", "train", "1")})
    assert found == {("test", "train", key): make_row(int(key))["image"] for key in ("1", "3")}


def test_drawn_questions_are_the_same_each_time():
    conversations = [Conversation(question=None, answer=None, targets=[[0], [1]], task="referring")]
    row = make_row(0, conversations=conversations, regions=[build_region(LEFT, "cat"), build_region(RIGHT, "cat")])
    assert fill_row(row, seed=1) == fill_row(row, seed=1)
    (filled,) = fill_row(row, seed=1)["conversations"]
    assert "cat" in filled["question"] and filled["answer"].count("{seg}") == 2 and filled["targets"] == [[0], [1]]
    drawn = {fill_row(make_row(index, conversations=conversations), seed=1)["conversations"][0]["question"] for index in range(20)}
    assert len(drawn) > 1


@pytest.mark.parametrize(("num_photos", "batch_size", "num_parts"), [(1200, 8, 33), (1200, 500, 4), (11, 4, 4), (10, 4, 3), (1, 8, 1)])
def test_parts_cover_the_first_rows_once(num_photos, batch_size, num_parts):
    groups = [RowGroup("a", 0, 10, 1), RowGroup("a", 1, 690, 1), RowGroup("b", 0, 500, 1)]
    parts = plan_parts(groups, num_photos, batch_size)
    rows = [(part["uri"], part["row_group"], row) for part in parts for row in range(part["start"], part["stop"])]
    assert rows == [(group.uri, group.index, row) for group in groups for row in range(group.num_rows)][:num_photos]
    assert all((part["stop"] - part["start"]) % batch_size == 0 for part, later in pairwise(parts)
               if (part["uri"], part["row_group"]) == (later["uri"], later["row_group"]))
    assert len(parts) == num_parts
