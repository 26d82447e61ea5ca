"""Counts of a shard folder, and the page of its samples."""

from pathlib import Path

import pytest

from jobs import inspect_data
from pixellm.data.schema import Conversation
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.data.survey import read_samples, survey
from tests.data.rows import make_row


@pytest.fixture
def folder(tmp_path: Path) -> str:
    rows = [make_row(index) for index in range(6)]
    rows[0]["conversations"] = [*rows[0]["conversations"], Conversation(question="<b>None?", answer="No {x}.", targets=[], task="vqa")]
    rows[1]["regions"][0]["ignore"], rows[1]["conversations"][0]["targets"] = True, [[1], [1]]
    write_shards([*rows, make_row(9, image=b"broken")], str(tmp_path / "shards"),
                 ShardOptions(shard_size_mb=0.006, row_group_mb=0.002, max_rejected_share=0.5))
    return str(tmp_path / "shards")


def test_counts_are_those_of_the_rows(folder: str) -> None:
    found = survey(folder)
    assert (found.targets, found.questions, found.tasks) == ({2: 6, 0: 1}, {1: 5, 2: 1}, {"reasoning": 6, "vqa": 1})
    assert found.longest_sides == {0: 6} and found.categories == {"cat": 6, "dog": 6} and found.num_ignored == 1
    assert found.manifest.rejected_by_reason == {"photo_format": 1}


def test_the_job_prints_bars_and_writes_a_page(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect_data.main([f"uri={folder}", f"output={tmp_path / 'page.html'}", "samples=6"])
    said = capsys.readouterr().out
    assert "6 photos, 12 regions (1 to be ignored), 7 questions, 12 targets" in said
    assert f"2          6  {'#' * 40}" in said and "photo_format" in said
    page = (tmp_path / "page.html").read_text()
    assert page.count("<section>") == 6 and page.count("<img") == 13 and "&lt;b&gt;None?" in page and "<b>None?" not in page


def test_samples_are_rows_of_the_folder(folder: str) -> None:
    rows = read_samples(folder, 3, seed=1)
    assert len({row["image_id"] for row in rows}) == 3 and rows == read_samples(folder, 3, seed=1)
    with pytest.raises(SystemExit, match=r"has no manifest.json"):
        inspect_data.main([f"{folder}/none"])
