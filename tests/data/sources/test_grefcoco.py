"""grefcoco.py: one target, several, or none."""

from pathlib import Path

import numpy as np
import pytest

from pixellm.data.prompts import fill_conversation
from pixellm.data.sources.grefcoco import GrefcocoSource
from pixellm.errors import ConfigError
from tests.data.sources.build import build_all
from tests.data.sources.refer_files import annotation, drawn, mask, ref, write_refer

ANNOTATIONS = [annotation(10), annotation(11), annotation(12, segmentation=[])]
LAYOUT = {"dataset": "grefcoco", "file": "grefs(unc).json", "photos": "images/train2014"}


def test_one_several_and_no_target(tmp_path: Path) -> None:
    refs = [
        ref(1, [11], "right one", category_id=[1], no_target=False),
        ref(2, [11, 10, 11], "both people", category_id=[1, 1, 1], no_target=False),
        ref(3, [-1], "The man in red", "a red car", category_id=[-1], no_target=True),
    ]
    write_refer(tmp_path, refs, ANNOTATIONS, **LAYOUT)
    (row,), rejected = build_all(GrefcocoSource(input=str(tmp_path), split="train"))
    assert not rejected and row["source"] == "grefcoco"
    np.testing.assert_array_equal(mask(row["regions"][0]), drawn(11))
    np.testing.assert_array_equal(mask(row["regions"][1]), drawn(10))
    one, several, man, car = row["conversations"]
    assert one["targets"] == [[0]] and "right one" in one["question"]
    assert several["targets"] == [[1], [0]] and "both people" in several["question"]  # from left to right
    for each, name in ((man, "man in red"), (car, "red car")):
        assert each["targets"] == [] and name in each["question"] and name in each["answer"]
        assert "{seg}" not in each["answer"] and "The man" not in each["answer"]
    assert fill_conversation(several, row["regions"], 0)[1].count("{seg}") == 2


def test_an_expression_goes_with_any_of_its_annotations(tmp_path: Path) -> None:
    refs = [ref(1, [10, 12], "two of them"), ref(2, [10], "one"), ref(3, [10, 99], "unknown"), ref(4, [], "nothing said")]
    write_refer(tmp_path, refs, ANNOTATIONS, **LAYOUT)
    (row,), rejected = build_all(GrefcocoSource(input=str(tmp_path), split="train"))
    assert [each["targets"] for each in row["conversations"]] == [[[0]]]
    assert [(each.reason, each.annotation_id) for each in rejected] == [
        ("annotation_invalid", "4"), ("unknown_annotation", "3"), ("polygon_invalid", "12")]


def test_a_photo_about_which_only_absent_things_are_said(tmp_path: Path) -> None:
    write_refer(tmp_path, [ref(1, [-1], "zebra")], ANNOTATIONS, **LAYOUT)
    (row,), rejected = build_all(GrefcocoSource(input=str(tmp_path), split="train"))
    assert row["regions"] == [] and len(row["conversations"]) == 1 and not rejected


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"grefs\(unc\)\.json.*instances\.json.*images/train2014"):
        GrefcocoSource(input=str(tmp_path), split="val").plan()
