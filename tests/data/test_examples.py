from pathlib import Path

import pytest

from pixellm.data.examples import read_example
from pixellm.data.schema import Conversation
from pixellm.data.shards import ShardOptions, write_shards
from pixellm.errors import ShardError
from tests.data.rows import make_row


def _conversation(question: str | None, *targets: list[int]) -> Conversation:
    answer = " ".join(["a thing {seg}"] * len(targets)) or "None."
    return Conversation(question=question, answer=answer, targets=list(targets), task="reasoning")


def test_a_question_about_several_things_is_preferred(tmp_path: Path) -> None:
    single, several = [_conversation("One?", [0])], [_conversation("None?"), _conversation("Both?", [0], [1])]
    rows = [make_row(0, conversations=single), make_row(1, conversations=several), make_row(2, conversations=single)]
    write_shards(rows, str(tmp_path), ShardOptions())
    assert read_example(str(tmp_path)) == (rows[1]["image"], "Both?")


def test_the_first_question_when_none_is_about_several_things(tmp_path: Path) -> None:
    write_shards([make_row(0, conversations=[_conversation("One?", [0])])], str(tmp_path), ShardOptions())
    assert read_example(str(tmp_path))[1] == "One?"


def test_a_folder_that_is_not_one_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has no manifest.json"):
        read_example(str(tmp_path))
