"""Rows to micro-batches, and what is set aside on the way."""

import itertools

import numpy as np
import pytest

from pixellm.data.collate import Collator
from pixellm.data.schema import Conversation, build_region
from pixellm.data.sources.shapes import ShapesSource
from pixellm.data.stream import StreamedRow
from pixellm.errors import RowError, TooManyRejectedError
from pixellm.masks import mask_to_rle
from tests.data.rows import make_photo, make_row
from tests.train.examples import base_model


def make_collator(**changes) -> Collator:
    values = {"processor": base_model()[1], "num_photos": 2, "max_conversations": 3, "seed": 0, "max_rejected_share": 0.05}
    return Collator(**(values | changes))


def stream(rows, epoch=0):
    return [StreamedRow(row, epoch, f"test/train/{row['image_id']}") for row in rows]


def test_scenes_become_tensors():
    rows = list(ShapesSource(num_scenes=5, questions_per_scene=6).read_rows())
    batches = list(make_collator().batches(stream(rows)))
    assert [batch.num_photos for batch in batches] == [2, 2], "the last incomplete batch is dropped"
    assert [key for _, key in batches[0].consumed] == [f"test/train/{row['image_id']}" for row in rows[:2]]
    first = batches[0]
    assert first.tensors["input_ids"].shape[0] == 6 and first.tensors["photo_index"].tolist() == [0, 0, 0, 1, 1, 1]
    assert first.num_masks == len(first.tensors["target_masks"]) > 0 and 0 < first.num_answer_tokens < first.num_tokens


def test_conversations_are_drawn_by_seed_epoch_and_key():
    row = next(ShapesSource(num_scenes=1, questions_per_scene=6).read_rows())
    (streamed,), (later,) = stream([row]), stream([row], epoch=1)

    def questions(collator, each):
        return [conversation.question for conversation in collator.build_example(each).conversations]

    assert questions(make_collator(), streamed) == questions(make_collator(), streamed)
    drawn = [questions(make_collator(seed=seed), each) for seed in range(3) for each in (streamed, later)]
    assert len({tuple(each) for each in drawn}) > 1 and all(len(set(each)) == 3 for each in drawn)
    assert len(questions(make_collator(max_conversations=100), streamed)) == len(row["conversations"])


def test_targets_are_unions_and_ignored_regions_leave_the_loss():
    crowd = np.zeros((12, 16), dtype=bool)
    crowd[:, 12:] = True
    row = make_row(0, conversations=[Conversation(question="Who?", answer="Both {seg}.", targets=[[0, 1]], task="reasoning")])
    row["regions"] = [*row["regions"], build_region(mask_to_rle(crowd), "crowd", ignore=True)]
    (conversation,) = make_collator().build_example(stream([row])[0]).conversations
    both = np.zeros((12, 16), dtype=bool)
    both[2:8, 1:6] = both[4:10, 9:15] = True
    assert np.array_equal(conversation.target_masks[0], both) and np.array_equal(conversation.ignore_mask, crowd)
    tensors, _ = make_collator().collate([make_collator().build_example(stream([row])[0])])
    valid = tensors["target_valid"][0]
    assert valid[:, 0].any() and 0.5 < float(valid[: int(valid.shape[0] * 0.7)].mean()) < 0.9


def test_photo_is_upright():
    row = make_row(0, image=make_photo(height=16, width=12, orientation=6))
    assert make_collator().build_example(stream([row])[0]).photo.size == (16, 12)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"image": b"not a photo"}, "photo_unreadable"),
    ({"image": make_photo()[:200]}, "photo_unreadable"),
    ({"image": make_photo(height=10)}, "size_mismatch"),
    ({"conversations": []}, "no_conversation"),
    ({"conversations": [Conversation(question="Q", answer="A {seg}", targets=[[7]], task="vqa")]}, "target_index"),
    ({"conversations": [Conversation(question=None, answer=None, targets=[], task="vqa")]}, "no_template"),
])
def test_a_bad_row_has_its_reason(changes, reason):
    with pytest.raises(RowError) as error:
        make_collator().build_example(stream([make_row(0, **changes)])[0])
    assert error.value.reason == reason


def test_a_bad_row_is_set_aside_and_the_batch_filled_up():
    rows = [make_row(0, image=b"x"), make_row(1), make_row(2)]
    (batch,) = make_collator().batches(stream(rows))
    assert batch.num_photos == 2 and len(batch.consumed) == 3, "a row that is set aside is consumed: it is not tried again this epoch"
    assert [(each.key, each.reason) for each in batch.set_aside] == [("test/train/0", "photo_unreadable")]


def test_a_conversation_that_is_too_long_is_set_aside_alone():
    long = Conversation(question="why " * 400, answer="No.", targets=[], task="vqa")
    rows = [make_row(0), make_row(1)]
    rows[1]["conversations"] = [long, *rows[1]["conversations"]]
    (batch,) = make_collator().batches(stream(rows))
    assert batch.tensors["photo_index"].tolist() == [0, 1]
    assert [(each.key, each.reason) for each in batch.set_aside] == [("test/train/1", "conversation_unusable")]
    assert "tokens" in batch.set_aside[0].detail


def test_too_many_bad_rows_stop_the_run():
    rows = stream([make_row(index, image=b"x") if index % 4 == 0 else make_row(index) for index in range(40)])
    with pytest.raises(TooManyRejectedError, match=r"max_rejected_share is 0.05; the last one, test/train/.*photo_unreadable"):
        list(make_collator().batches(rows))
    assert len(list(make_collator(max_rejected_share=0.5).batches(itertools.islice(rows, 40)))) == 15
