"""Pixel counts of overlaps against bitmaps: every number of masks, odd sizes, empty and full masks, and texts that COCO does not write."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.errors import RowError
from pixellm.evaluation.overlaps import MOST_MASKS, QUESTIONS_AT_A_TIME, count_overlaps
from pixellm.masks import RLE, mask_to_rle


def random_mask(rng, size_hw):
    kind = rng.integers(5)
    if kind < 2:
        return np.full(size_hw, bool(kind))
    mask = rng.random(size_hw) < rng.random()
    if kind == 4:
        mask[:, :] = mask[:1, :1]
        mask[rng.integers(size_hw[0]):, rng.integers(size_hw[1]):] ^= True
    return mask


def assert_counts(questions):
    found = count_overlaps([tuple([mask_to_rle(mask) for mask in masks] for masks in question) for question in questions])
    for (predicted, true), overlaps in zip(questions, found, strict=True):
        assert overlaps.predicted.tolist() == [mask.sum() for mask in predicted] and overlaps.true.tolist() == [mask.sum() for mask in true]
        assert overlaps.both.shape == (len(predicted), len(true))
        assert all(overlaps.both[p, t] == (one & other).sum() for p, one in enumerate(predicted) for t, other in enumerate(true))
        if predicted or true:
            empty = np.zeros_like((*predicted, *true)[0])
            one, other = (np.any([empty, *masks], axis=0) for masks in (predicted, true))
            assert (overlaps.union_intersection, overlaps.union_union) == ((one & other).sum(), (one | other).sum())
        else:
            assert (overlaps.union_intersection, overlaps.union_union) == (0, 0)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_counts_are_those_of_bitmaps(seed):
    rng = np.random.default_rng(seed)
    questions = []
    for _ in range(rng.integers(1, 8)):
        size_hw = tuple(rng.integers(1, 40, 2))
        questions.append(tuple([random_mask(rng, size_hw) for _ in range(rng.integers(0, 5))] for _ in range(2)))
    assert_counts(questions)


@pytest.mark.parametrize("num_masks", [MOST_MASKS, MOST_MASKS + 1, 40])
def test_many_masks(num_masks):
    rng = np.random.default_rng(num_masks)
    assert_counts([([random_mask(rng, (17, 23)) for _ in range(num_masks - 3)], [random_mask(rng, (17, 23)) for _ in range(3)])])


def test_more_questions_than_are_counted_at_a_time():
    rng = np.random.default_rng(0)
    assert_counts([([random_mask(rng, (30, 20))], [random_mask(rng, (30, 20)), random_mask(rng, (30, 20))])
                   for _ in range(2 * QUESTIONS_AT_A_TIME + 3)])


def test_large_photos_of_different_sizes():
    rng = np.random.default_rng(1)
    dot = np.ones((1, 1), dtype=bool)
    assert_counts([([rng.random((3000, 2000)) < 0.5], [np.ones((3000, 2000), dtype=bool)]), ([dot], [dot])])


@pytest.mark.parametrize("counts", ["7", "~~", "P", "", "0O7", "P" * 13 + "0"])
def test_texts_that_coco_does_not_write(counts):
    rle = RLE(size=[2, 3], counts=counts)
    good = mask_to_rle(np.ones((2, 3), dtype=bool))
    with pytest.raises(RowError) as refused:
        count_overlaps([([good], [good]), ([rle], [good])])
    assert refused.value.reason == "rle_invalid"


def test_sizes_that_differ():
    with pytest.raises(RowError, match="different sizes"):
        count_overlaps([([mask_to_rle(np.ones((2, 3), dtype=bool))], [mask_to_rle(np.ones((3, 2), dtype=bool))])])
