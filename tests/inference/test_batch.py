"""Batch inference without Ray: tables in, tables out, and one bad photo never costs the others."""

import pyarrow as pa
import pytest

from pixellm.data.schema import ROW_SCHEMA, Conversation, region_rle
from pixellm.errors import RowError, TooManyRejectedError
from pixellm.inference.batch import RECORD_SCHEMA, SegmentBatch, check_failures
from pixellm.testing import FakeSegmenter
from tests.data.rows import make_row


def table_of(*rows):
    return pa.Table.from_pylist(list(rows), schema=ROW_SCHEMA)


def ask(question, answer="The cat {seg}.", targets=((0,),)):
    return Conversation(question=question, answer=answer, targets=[list(target) for target in targets], task="reasoning")


@pytest.fixture
def fake():
    return FakeSegmenter(num_targets=3, failing="boom")


def run(fake, *rows, **options):
    table = SegmentBatch(lambda: fake, **options)(table_of(*rows))
    assert table.schema == RECORD_SCHEMA
    return table.to_pylist()


def test_all_questions_of_all_photos_go_into_one_call_with_one_image_per_photo(fake):
    rows = [make_row(0, conversations=[ask("one?"), ask("two?")]), make_row(1, conversations=[ask("three?")])]
    records = run(fake, *rows)
    assert fake.calls == [(3, 2)]
    assert [(record["image_id"], record["question_index"], record["question"]) for record in records] == [
        ("0", 0, "one?"), ("0", 1, "two?"), ("1", 0, "three?")]


def test_record_carries_answer_and_truth(fake):
    row = make_row(0, conversations=[ask("both?", "The cat and the dog {seg}, the dog {seg}.", ((0, 1), (1,)))])
    (record,) = run(fake, row)
    assert record["failure"] is None and record["finish_reason"] == "stop" and record["source"] == "test"
    assert len(record["masks"]) == len(record["spans"]) == len(record["scores"]) == 3
    assert record["text"][slice(*record["spans"][1])] == "the part 2"
    assert record["true_answer"].count("{seg}") == len(record["true_masks"]) == 2
    assert record["true_masks"][1] == region_rle(row["regions"][1])
    assert record["true_masks"][0]["size"] == [12, 16] and record["true_masks"][0] not in map(region_rle, row["regions"])


def test_question_without_targets(fake):
    fake.num_targets = 0
    (record,) = run(fake, make_row(0, conversations=[ask("any bird?", "There is none.", ())]))
    assert record["masks"] == record["true_masks"] == [] and record["text"] == "there are none."


def test_unreadable_photo_is_set_aside_with_its_reason(fake):
    records = run(fake, make_row(0), make_row(1, image=b"no photo"), make_row(2))
    failed = [record for record in records if record["failure"]]
    assert [(record["image_id"], record["failure"]) for record in failed] == [("1", "photo_format")]
    assert failed[0]["question"] is None and "not a photo" in failed[0]["failure_detail"]
    assert sorted(record["image_id"] for record in records if not record["failure"]) == ["0", "2"]


def test_photo_that_breaks_the_model_is_set_aside_alone(fake):
    questions = [ask("fine?"), ask("also fine?")], [ask("fine?"), ask("boom?")]
    rows = [make_row(0, conversations=questions[0]), make_row(1, conversations=questions[1]), make_row(2)]
    records = run(fake, *rows)
    assert [(record["image_id"], record["failure"]) for record in records] == [
        ("0", None), ("0", None), ("1", "RuntimeError"), ("2", None)]
    assert fake.calls == [(5, 3), (2, 1), (2, 1), (1, 1)]


def test_size_that_differs_from_the_row_is_set_aside(fake):
    (record,) = run(fake, make_row(0, height=13))
    assert record["failure"] == "size_mismatch"


def test_prepare_row_completes_rows_and_may_reject_them(fake):
    def prepare(row):
        if row["image_id"] == "1":
            raise RowError("no_template", "nothing to ask")
        return row | {"conversations": [conversation | {"question": "drawn?"} for conversation in row["conversations"]]}

    records = run(fake, make_row(0, conversations=[ask(None)]), make_row(1, conversations=[ask(None)]), prepare_row=prepare)
    assert {record["image_id"]: (record["question"], record["failure"]) for record in records} == {
        "0": ("drawn?", None), "1": (None, "no_template")}


def test_empty_batch_keeps_the_schema(fake):
    assert SegmentBatch(lambda: fake)(table_of()).schema == RECORD_SCHEMA and not fake.calls


def test_too_many_failures_are_an_error(fake):
    failures = run(fake, make_row(1, image=b"no photo"))
    with pytest.raises(TooManyRejectedError, match=r"1 of 5 photos were set aside, by reason \{'photo_format': 1\}.*at most 10%"):
        check_failures(failures, 5, max_share=0.1)
    check_failures(failures, 5, max_share=0.2)
