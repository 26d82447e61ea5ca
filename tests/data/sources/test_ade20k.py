"""The ADE20K reader; what it shares with others is tested in test_label_maps.py."""

from pathlib import Path

import pytest

from pixellm.data.sources.ade20k import Ade20kSource
from pixellm.errors import ConfigError
from tests.data.sources.build import build_all
from tests.data.sources.label_map_files import masks_of, random_labels, write_ade20k


def test_names_are_the_first_synonyms_of_the_shipped_table(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path, {"ADE_val_00000001": random_labels([1, 2, 150])})
    (row,), _ = build_all(source)
    assert list(masks_of(row)) == ["wall", "floor", "flag"]


def test_a_table_with_another_column_is_read_by_its_header(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path, {"ADE_val_00000001": random_labels([1])})
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t10\t2\t1\twall\n")
    (row,), _ = build_all(source)
    assert list(masks_of(row)) == ["wall"]


def test_a_file_that_is_no_such_table_is_an_error(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path, {"ADE_val_00000001": random_labels([1])})
    for content in ("", "wall\nfloor\n", "Idx\tName\n1\n"):
        (tmp_path / "objectInfo150.txt").write_text(content)
        with pytest.raises(ConfigError, match=r"objectInfo150\.txt is no table with the columns Idx and Name"):
            source.plan()


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Ade20kSource(input=str(tmp_path), split="train").plan()
    for text in ("images/training", "annotations/training", "objectInfo150.txt", "ADEChallengeData2016.zip"):
        assert text in str(caught.value)
