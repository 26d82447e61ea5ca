"""The shipped fake behaves like the real segmenter where others rely on it."""

import inspect
import pickle

import numpy as np
import pytest
from PIL import Image

from pixellm.errors import InputError
from pixellm.inference.segmenter import Segmenter
from pixellm.masks import mask_to_rle, rle_to_mask
from pixellm.testing import FakeSegmenter, pixels_key

PHOTO = Image.new("RGB", (10, 4), (9, 8, 7))


def test_has_the_interface_of_the_real_one():
    fake, real = (inspect.signature(each.segment).parameters.values() for each in (FakeSegmenter, Segmenter))
    assert [(each.name, each.kind, each.default) for each in fake] == [(each.name, each.kind, each.default) for each in real]


def test_strips_cover_the_photo_and_spans_name_them():
    (answer,) = FakeSegmenter(num_targets=3).segment([PHOTO], ["what is there?"])
    masks = [rle_to_mask(target.rle) for target in answer.targets]
    assert (np.sum(masks, axis=0) == 1).all() and masks[0].shape == answer.size_hw == (4, 10)
    assert [answer.text[slice(*target.span)] for target in answer.targets] == ["the part 1", "the part 2", "the part 3"]
    assert answer.answer.count("{seg}") == 3 and answer.targets[0].area == masks[0].sum()
    none = FakeSegmenter(num_targets=0).segment(PHOTO, "what is there?")
    assert none.targets == [] and none.text == "there are none."


def test_known_answers_are_given_for_equal_pixels_only():
    mask = np.zeros((4, 10), dtype=bool)
    mask[1, 2:5] = True
    fake = FakeSegmenter(known={(pixels_key(PHOTO), "where?"): ("the dot {seg}.", [mask_to_rle(mask)])})
    answers = pickle.loads(pickle.dumps(fake)).segment([PHOTO.copy(), Image.new("RGB", (10, 4)), PHOTO], ["where?", "where?", "who?"])
    assert answers[0].targets[0].box_xywh == [2, 1, 3, 1] and answers[0].text == "the dot."
    assert [len(answer.targets) for answer in answers] == [1, 2, 2]


def test_errors_and_calls():
    fake = FakeSegmenter(failing="boom")
    with pytest.raises(InputError, match="empty"):
        fake.segment([PHOTO], [" "])
    with pytest.raises(RuntimeError, match="boom"):
        fake.segment([PHOTO, PHOTO], ["fine", "boom?"])
    assert fake.calls == [(1, 1), (2, 1)]
