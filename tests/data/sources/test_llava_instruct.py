"""llava_instruct.py: conversations without masks to rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from pixellm.data.sources.llava_instruct import LlavaInstructSource
from pixellm.errors import ConfigError
from tests.data.rows import make_photo
from tests.data.sources.build import build_all


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def entry(*turns: dict[str, str], number: int = 30) -> dict[str, Any]:
    turns = turns or (turn("human", "What is on the table?\n<image>"), turn("gpt", "A {cup} of tea."))
    return {"id": f"{number:012}", "image": f"{number:012}.jpg", "conversations": list(turns)}


def write_llava(folder: Path, entries: list[Any], **photo: Any) -> LlavaInstructSource:
    (folder / "train2017").mkdir(parents=True, exist_ok=True)
    for number in (30, 31):
        (folder / f"train2017/{number:012}.jpg").write_bytes(make_photo(**photo))
    (folder / "llava_instruct_150k.json").write_text(json.dumps(entries))
    return LlavaInstructSource(input=str(folder))


def test_each_pair_of_turns_is_a_conversation_and_entries_of_a_photo_one_row(tmp_path: Path) -> None:
    turns = [turn("human", "<image>\nWho?"), turn("gpt", "A man."), turn("human", "Where?"), turn("gpt", "In the sun.")]
    rows, rejected = build_all(write_llava(tmp_path, [entry(), entry(number=31), entry(*turns)]))
    assert not rejected and [row["image_id"] for row in rows] == ["30", "31"]
    assert [(each["question"], each["answer"]) for each in rows[0]["conversations"]] == [
        ("What is on the table?", "A {cup} of tea."), ("Who?", "A man."), ("Where?", "In the sun.")]
    assert all(each["task"] == "vqa" and each["targets"] == [] for each in rows[0]["conversations"]) and rows[0]["regions"] == []
    assert (rows[0]["height"], rows[0]["width"], rows[0]["split"]) == (12, 16, "train")


def test_size_after_exif(tmp_path: Path) -> None:
    (row,), _ = build_all(write_llava(tmp_path, [entry()], orientation=6))
    assert (row["height"], row["width"]) == (16, 12)


def test_an_answer_that_nobody_asked_for_is_left_out(tmp_path: Path) -> None:
    (row,), rejected = build_all(write_llava(tmp_path, [entry(turn("gpt", "Hello."), turn("human", "Who?"), turn("gpt", "A man."))]))
    assert not rejected and [each["question"] for each in row["conversations"]] == ["Who?"]


@pytest.mark.parametrize(("bad", "reason", "annotation_id"), [
    (entry(turn("human", "Who?")), "annotation_invalid", "0"),
    (entry(turn("human", "Who?"), turn("human", "Where?")), "annotation_invalid", "0"),
    (entry() | {"conversations": [1]}, "annotation_invalid", "0"),
    (entry(turn("human", "<image>"), turn("gpt", "A man.")), "empty_text", "0/0"),
    (entry(turn("human", "A {seg}?"), turn("gpt", "A man.")), "seg_in_question", "0/0"),
    (entry(turn("human", "Who?"), turn("gpt", "A {seg}.")), "seg_count_mismatch", "0/0"),
    ({"id": "7", "conversations": []}, "image_invalid", "0"),
    (entry(number=99), "photo_missing", None),
])
def test_what_is_bad_is_set_aside_and_the_rest_goes_on(tmp_path: Path, bad: dict, reason: str, annotation_id: str | None) -> None:
    (row,), (rejected,) = build_all(write_llava(tmp_path, [bad, entry()]))
    assert (rejected.reason, rejected.annotation_id) == (reason, annotation_id) and len(row["conversations"]) == 1


def test_a_photo_without_usable_questions_is_set_aside(tmp_path: Path) -> None:
    rows, rejected = build_all(write_llava(tmp_path, [entry(turn("human", "Who?"))]))
    assert not rows and [each.reason for each in rejected] == ["annotation_invalid", "no_usable_annotation"]


def test_missing_files_are_named_at_once_and_a_change_changes_the_version(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"annotations .*llava_instruct_150k\.json.*photos .*none"):
        LlavaInstructSource(input=str(tmp_path), photos=str(tmp_path / "none")).plan()
    versions = {write_llava(tmp_path, [entry(number=number)]).plan().version for number in (30, 31)}
    assert len(versions) == 2 and all(version.startswith("sha256:") for version in versions)
