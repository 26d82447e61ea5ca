"""shards.py and manifest.py: nothing is lost, nothing is doubled, and a folder is complete or refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pixellm.data import shards
from pixellm.data.manifest import MANIFEST_NAME, SourceInfo, read_manifest
from pixellm.data.schema import ROW_SCHEMA, RejectedRow, Row
from pixellm.data.shards import ShardOptions, verify_checksums, write_shards
from pixellm.errors import ShardError, TooManyRejectedError
from tests.data.rows import make_row

SMALL = ShardOptions(shard_size_mb=0.006, row_group_mb=0.002, seed=3)


def read_rows(folder: Path) -> list[Row]:
    return [row for uri in read_manifest(str(folder)).shard_uris(str(folder)) for row in pq.read_table(uri).to_pylist()]


def rejected_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / shards.REJECTED_NAME).read_text().splitlines()]


def test_rows_come_back_as_they_were_in_several_shards_and_row_groups(tmp_path: Path) -> None:
    rows = [make_row(index) for index in range(40)]
    source = SourceInfo(name="test", version="1")
    manifest = write_shards(iter(rows), str(tmp_path), SMALL, [source])
    assert sorted(read_rows(tmp_path), key=lambda row: int(row["image_id"])) == rows
    assert len(manifest.shards) > 2
    first = pq.ParquetFile(tmp_path / manifest.shards[0].name)
    assert first.schema_arrow.equals(ROW_SCHEMA) and first.num_row_groups > 1
    assert (manifest.num_rows, manifest.num_regions, manifest.num_conversations, manifest.num_targets) == (40, 80, 40, 80)
    assert manifest.num_bytes == sum((tmp_path / shard.name).stat().st_size for shard in manifest.shards)
    assert manifest.sources == [source]
    assert verify_checksums(str(tmp_path)) == manifest


def test_the_shuffle_depends_on_rows_and_seed_only(tmp_path: Path) -> None:
    rows = [make_row(index) for index in range(30)]
    for name, given, seed in (("a", rows, 3), ("b", rows[::-1], 3), ("c", rows, 4)):
        write_shards(given, str(tmp_path / name), ShardOptions(seed=seed))
    order = {name: [row["image_id"] for row in read_rows(tmp_path / name)] for name in "abc"}
    assert order["a"] == order["b"] != order["c"]
    assert order["a"] != [row["image_id"] for row in rows]
    assert read_manifest(str(tmp_path / "a")).shards == read_manifest(str(tmp_path / "b")).shards


def test_a_rerun_replaces_everything_that_was_ours(tmp_path: Path) -> None:
    write_shards([make_row(index) for index in range(40)], str(tmp_path), SMALL)
    (tmp_path / "notes.txt").write_text("mine")
    second = write_shards([make_row(index) for index in range(5)], str(tmp_path), SMALL)
    assert len(read_rows(tmp_path)) == 5
    (folder,) = {shard.name.partition("/")[0] for shard in second.shards}
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([folder, MANIFEST_NAME, shards.REJECTED_NAME, "notes.txt"])


def test_bad_rows_are_set_aside_with_their_reason_and_counted(tmp_path: Path) -> None:
    rows = [
        *(make_row(index) for index in range(8)), make_row(3), make_row(20, image=b"broken"),
        RejectedRow("21", "test", "photo_missing", "no such file"), RejectedRow("2", "test", "empty_mask", "no pixel", annotation_id="7"),
        RejectedRow("22", "test", "nothing_to_ask", "no category"),
    ]
    manifest = write_shards(rows, str(tmp_path), ShardOptions(max_rejected_share=0.3))
    assert (manifest.num_rows, manifest.num_rejected_rows, manifest.num_rejected_annotations) == (8, 4, 1)
    reasons = ("duplicate_id", "empty_mask", "nothing_to_ask", "photo_format", "photo_missing")
    assert manifest.rejected_by_reason == dict.fromkeys(reasons, 1)
    lines = rejected_lines(tmp_path)
    assert [(line["image_id"], line["reason"], line["annotation_id"]) for line in lines] == [
        ("3", "duplicate_id", None), ("20", "photo_format", None), ("21", "photo_missing", None), ("2", "empty_mask", "7"),
        ("22", "nothing_to_ask", None)]
    assert all(line["detail"] for line in lines)


def test_too_many_bad_rows_stop_the_job_and_leave_the_earlier_shards(tmp_path: Path) -> None:
    before = write_shards([make_row(index) for index in range(5)], str(tmp_path), SMALL)
    rows = [*(make_row(index) for index in range(7)), *(RejectedRow(str(index), "test", "photo_missing", "gone") for index in range(3))]
    with pytest.raises(TooManyRejectedError, match=r"3 of 10 photos .*max_rejected_share=0.29.*photo_missing"):
        write_shards(rows, str(tmp_path), ShardOptions(max_rejected_share=0.29))
    assert len(rejected_lines(tmp_path)) == 3
    assert read_manifest(str(tmp_path)) == before
    write_shards(rows, str(tmp_path), ShardOptions(max_rejected_share=0.3))
    assert read_manifest(str(tmp_path)).num_rows == 7


def test_too_many_bad_annotations_stop_the_job(tmp_path: Path) -> None:
    rows = [make_row(0), RejectedRow("0", "test", "polygon_outside", "x", annotation_id="1")]
    with pytest.raises(TooManyRejectedError, match="1 of 3 regions"):
        write_shards(rows, str(tmp_path), ShardOptions(max_rejected_share=0.3))


def test_skipped_photos_do_not_count_as_bad(tmp_path: Path) -> None:
    rows = [make_row(0), *(RejectedRow(str(index), "test", "nothing_to_ask", "x") for index in range(9))]
    assert write_shards(rows, str(tmp_path), ShardOptions(max_rejected_share=0)).num_rejected_rows == 9


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no photo becomes a row"):
        write_shards([], str(tmp_path), ShardOptions())


def test_a_source_that_fails_midway_changes_nothing(tmp_path: Path) -> None:
    before = write_shards([make_row(0)], str(tmp_path), SMALL)

    def failing() -> Iterator[Row]:
        yield make_row(1)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_shards(failing(), str(tmp_path), SMALL)
    assert read_manifest(str(tmp_path)) == before


def test_an_interrupted_write_leaves_the_earlier_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write_shards([make_row(0)], str(tmp_path), SMALL)

    def fail(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards.pq, "ParquetWriter", fail)
    with pytest.raises(KeyboardInterrupt):
        write_shards([make_row(1)], str(tmp_path), SMALL)
    assert read_manifest(str(tmp_path)) == before == verify_checksums(str(tmp_path))


def first_shard(folder: Path) -> Path:
    return next(folder.glob("shards-*/shard-00000.parquet"))


def raise_format_version(file: Path) -> None:
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 9'))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / MANIFEST_NAME).unlink(), "has no manifest.json"),
    (lambda folder: (folder / MANIFEST_NAME).write_text("{}"), "not a manifest"),
    (lambda folder: raise_format_version(folder / MANIFEST_NAME), "format version 9"),
    (lambda folder: first_shard(folder).unlink(), "is missing"),
    (lambda folder: first_shard(folder).write_bytes(b"short"), "has 5 bytes"),
])
def test_damaged_folders_are_refused(tmp_path: Path, damage, message: str) -> None:
    write_shards([make_row(0)], str(tmp_path), SMALL)
    damage(tmp_path)
    with pytest.raises(ShardError, match=message):
        read_manifest(str(tmp_path))


def test_a_changed_byte_is_found_by_its_checksum(tmp_path: Path) -> None:
    write_shards([make_row(0)], str(tmp_path), SMALL)
    file = first_shard(tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    read_manifest(str(tmp_path))
    with pytest.raises(ShardError, match="checksum"):
        verify_checksums(str(tmp_path))
