"""Rows to micro-batches, and what is set aside on the way."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pixellm.data.collate import Collator, SetAsideCounter
from pixellm.data.schema import TASKS, Conversation, build_region
from pixellm.data.sources.shapes import ShapesSource
from pixellm.data.spans import StreamedRow
from pixellm.errors import RowError, TooManyRejectedError
from pixellm.masks import mask_to_rle
from pixellm.model.packing import pack_mask, unpack_batch
from pixellm.photos import decode_photo, upright_rgb
from tests.data.rows import make_photo, make_row
from tests.data.sources.build import build_all
from tests.train.examples import base_model


def make_collator(**changes) -> Collator:
    values = {"processor": base_model()[1], "max_conversations": 3, "seed": 0}
    return Collator(**(values | changes))


def stream(rows, epoch=0):
    return [StreamedRow(row, epoch, f"test/train/{row['image_id']}") for row in rows]


def test_scenes_become_tensors():
    rows = build_all(ShapesSource(num_scenes=2, questions_per_scene=6))[0]
    batch = make_collator().build(stream(rows))
    assert batch.num_photos == 2 and batch.consumed == [(0, f"test/train/{row['image_id']}") for row in rows]
    assert batch.tensors["input_ids"].shape[0] == 6 and batch.tensors["photo_index"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.num_masks == len(batch.tensors["target_masks"]) > 0 and 0 < batch.num_answer_tokens < batch.num_tokens


def test_the_length_is_that_of_the_longest_conversation():
    texts = [Conversation(question="Q" * length, answer="A.", targets=[], task="vqa") for length in (3, 30, 10)]
    assert make_collator().length(stream([make_row(0, conversations=texts)])[0]) == 32
    assert make_collator().length(stream([make_row(0, conversations=[])])[0]) == 0


def test_conversations_are_drawn_by_seed_epoch_and_key():
    row = ShapesSource(num_scenes=1, questions_per_scene=6).build_row(0)
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
    assert valid[:, 0].any() and 0.5 < float(valid[: int(valid.shape[0] * 0.7)].float().mean()) / 255 < 0.9


def test_photo_is_upright():
    row = make_row(0, image=make_photo(height=16, width=12, orientation=6))
    assert make_collator().build_example(stream([row])[0]).photo.size == (16, 12)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"image": b"not a photo"}, "photo_format"),
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


def test_a_bad_row_is_set_aside_alone():
    batch = make_collator().build(stream([make_row(0, image=b"x"), make_row(1), make_row(2)]))
    assert batch.num_photos == 2 and len(batch.consumed) == 3, "a row that is set aside is consumed: it is not tried again this epoch"
    assert [(each.key, each.reason) for each in batch.set_aside] == [("test/train/0", "photo_format")]


def test_a_micro_batch_without_a_usable_row_weighs_nothing():
    batch = make_collator().build(stream([make_row(0, image=b"x")]))
    assert len(batch.set_aside) == len(batch.consumed) == 1
    assert batch.num_answer_tokens == batch.num_masks == 0 and unpack_batch(batch.tensors)["pixel_values"].isfinite().all()


def test_a_conversation_that_is_too_long_is_set_aside_alone():
    long = Conversation(question="why " * 400, answer="No.", targets=[], task="vqa")
    rows = [make_row(0), make_row(1)]
    rows[1]["conversations"] = [long, *rows[1]["conversations"]]
    batch = make_collator().build(stream(rows))
    assert batch.tensors["photo_index"].tolist() == [0, 1]
    assert [(each.key, each.reason) for each in batch.set_aside] == [("test/train/1", "conversation_unusable")]
    assert "tokens" in batch.set_aside[0].detail


def test_too_many_bad_rows_stop_the_run_on_every_worker_and_after_a_resume():
    rows = stream([make_row(index, image=b"x") if index % 4 == 0 else make_row(index) for index in range(40)])
    batches = [make_collator().build(rows[start:start + 2]) for start in range(0, 40, 2)]

    def count(counter, batches, is_mine=True):
        for batch in batches:
            counter.add(len(batch.consumed), len(batch.set_aside), batch.set_aside if is_mine else [])
        return counter

    with pytest.raises(TooManyRejectedError, match=r"6 of .* max_rejected_share is 0.05; the last one here, test/train/20: photo_format"):
        count(SetAsideCounter(0.05), batches)
    with pytest.raises(TooManyRejectedError, match=r"6 of .* rows could not be used, max_rejected_share is 0.05$"):
        count(SetAsideCounter(0.05), batches, is_mine=False)
    state = count(SetAsideCounter(0.05), batches[:8]).state
    with pytest.raises(TooManyRejectedError, match=r"6 of 22 rows"):
        count(SetAsideCounter(0.05, **state), batches[8:])
    assert count(SetAsideCounter(0.5), batches).state == {"num_rows": 40, "num_set_aside": 10}


def test_what_travels_packed_is_what_the_model_takes():
    """Bytes on the way change no number: pixels, masks in steps of 1/255, and masks at the photo's own size."""
    processor = base_model()[1]
    rows = build_all(ShapesSource(num_scenes=3, questions_per_scene=3))[0]
    for resolution in ("decoder", "photo"):
        collator = make_collator(mask_resolution=resolution)
        examples = [collator.build_example(each) for each in stream(rows)]
        conversations = [replace(each, photo_index=i) for i, example in enumerate(examples) for each in example.conversations]
        packed = collator.build(stream(rows)).tensors
        found, wanted = unpack_batch(packed), processor.collate([example.photo for example in examples], conversations, resolution)
        assert found.keys() - wanted.keys() == {"task_index"} and all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert {packed[name].dtype for name in ("pixels", "target_masks", "target_valid")} == {torch.uint8}
    images, mask = processor.image_processor, np.zeros((70, 90), bool)
    mask[11:50, 7:31] = True
    assert np.array_equal(pack_mask(images.to_mask_grid(mask)).float() / 255, images.to_mask_grid(mask))
    pixels = images.to_pixels([example.photo for example in examples])["pixels"]
    mean, std = (np.array(each, np.float32) for each in (images.image_mean, images.image_std))
    assert np.array_equal(found["pixel_values"].permute(0, 2, 3, 1), (pixels.numpy() / np.float32(255) - mean) / std), "scenes are square"


def test_a_large_photo_is_decoded_at_a_scale():
    """At a half it is at most 3 of 255 from full decoding in the mean (0.6 on noise with a photo's spectrum); sizes stay the full ones."""
    collator, rng = make_collator(), np.random.default_rng(0)
    side = collator.processor.image_processor.image_size
    height, width = 4 * side + 8, 5 * side
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    noisy = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (height, width, 3))
    photo = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    for orientation in (1, 6):
        upright_hw = (height, width) if orientation == 1 else (width, height)
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = io.BytesIO()
        photo.save(data, "JPEG", quality=92, exif=exif)
        mask = np.zeros(upright_hw, bool)
        mask[:side, side:] = True
        row = make_row(0, image=data.getvalue(), height=upright_hw[0], width=upright_hw[1],
                       regions=[build_region(mask_to_rle(mask), "part")],
                       conversations=[Conversation(question="Where?", answer="Here {seg}.", targets=[[0]], task="reasoning")])
        example = collator.build_example(stream([row])[0])
        assert example.photo_size_hw == upright_hw
        assert example.photo.size == ((upright_hw[1] + 1) // 2, (upright_hw[0] + 1) // 2), "at a half, upright"
        full = replace(example, photo=upright_rgb(Image.open(data)))
        packed, wanted = (collator.collate([each])[0] for each in (example, full))
        assert full.photo.size == upright_hw[::-1]
        for name in packed.keys() - {"pixels"}:
            assert torch.equal(packed[name], wanted[name]), name
        difference = (packed["pixels"].int() - wanted["pixels"].int()).abs().float()
        assert 0 < difference.mean() < 3 and difference.quantile(0.99) <= 10, (difference.mean(), difference.quantile(0.99))
    small = io.BytesIO()
    photo.resize((2 * side, side)).save(small, "JPEG")
    assert decode_photo(small.getvalue(), side)[0].size == (2 * side, side), "a photo that is not large is decoded in full"


def test_each_conversation_carries_its_task():
    long = Conversation(question="why " * 400, answer="No.", targets=[], task="vqa")
    rows = [make_row(0), make_row(1)]
    rows[1]["conversations"] = [long, Conversation(question="Cat?", answer="The cat {seg}.", targets=[[0]], task="referring")]
    tasks = make_collator().build(stream(rows)).tensors["task_index"]
    assert [TASKS[index] for index in tasks.tolist()] == ["reasoning", "referring"], "one that is set aside is not in it"
