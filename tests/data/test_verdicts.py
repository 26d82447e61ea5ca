"""The dry run and the run agree on what stops a job, and say what the share is of."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixellm.data.dry_run import dry_run
from pixellm.data.parts import Counts, ShardOptions, build_part
from pixellm.data.prepare import check_plan
from pixellm.data.shards import ShardNote, publish
from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.plan import Source
from pixellm.errors import ShardError, TooManyRejectedError
from tests.data.sources.instances_files import CATEGORIES, annotation, image, write_dataset
from tests.data.sources.test_llava_instruct import entry, turn, write_llava

KINDS = [{}, {"segmentation": []}, {"category_id": 99}, {"category_id": None}, {"image_id": None}, {"iscrowd": 1}, {"iscrowd": "0"}]


def run(source: Source, options: ShardOptions, output: Path) -> str | None:
    """The message that the real run stops with, in this process."""
    plan = source.plan()
    try:
        check_plan(plan, str(output), options)
        part = build_part(plan.records, plan.builder, plan.source, options.max_side)
        publish(str(output), "shards-000000000000", [ShardNote.of(None, [part])], plan.rejected, options, [], plan.counted)
    except (TooManyRejectedError, ShardError) as error:
        return str(error)
    return None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(KINDS)), max_size=12), st.sampled_from([0.0, 0.05, 0.3, 1.0]))
def test_the_dry_run_tells_what_the_run_does(tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], share: float) -> None:
    folder = tmp_path_factory.mktemp("set")
    annotations = [annotation(number, photo) | changes for number, (photo, changes) in enumerate(drawn)]
    source = CocoSource(**write_dataset(folder, [image(number) for number in range(1, 6)], annotations))
    options = ShardOptions(max_rejected_share=share)
    assert dry_run(source, options).problem == run(source, options, folder / "out")


def test_a_set_that_only_says_that_nothing_is_there_is_refused(tmp_path: Path) -> None:
    annotations = [annotation(1, 1, iscrowd=1), annotation(2, 2, category_id=2, iscrowd=1)]
    source = CocoSource(**write_dataset(tmp_path, [image(1), image(2)], annotations, CATEGORIES), absent_share=1)
    problem = dry_run(source, ShardOptions()).problem
    assert problem and "has a target" in problem and "iscrowd" in problem and problem == run(source, ShardOptions(), tmp_path / "out")


def test_of_a_source_without_regions_the_share_is_of_questions(tmp_path: Path) -> None:
    good = [entry(turn("human", f"Where is cup {number}?"), turn("gpt", "There.")) for number in range(40)]
    source = write_llava(tmp_path, [*good, {"id": "x", "conversations": [turn("human", "Who?"), turn("gpt", "I.")]}])
    assert dry_run(source, ShardOptions()).problem is None and run(source, ShardOptions(), tmp_path / "out") is None
    problem = dry_run(source, ShardOptions(max_rejected_share=0.02)).problem
    assert problem and "1 of 41 questions were set aside, above max_rejected_share=0.02" in problem


def test_a_sample_is_scaled_to_the_set() -> None:
    scaled = Counts(num_rows=2, num_regions=5, read_s=1.5, rejected_by_reason={"a": 1}).scaled(2.5)
    assert (scaled.num_rows, scaled.num_regions, scaled.read_s, scaled.rejected_by_reason) == (5, 12, 1.5, {"a": 2})
