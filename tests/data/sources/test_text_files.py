"""Annotation files in the encodings that tools write, numbers that JSON does not have, and labelme's shapes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixellm.data.schema import region_rle
from pixellm.data.sources.ade20k import _read_names
from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.reason_seg import ReasonSegSource
from pixellm.data.sources.text_files import decode_text
from pixellm.errors import ConfigError, RowError
from pixellm.masks import rle_to_mask
from tests.data.rows import make_photo
from tests.data.sources.build import build_all
from tests.data.sources.instances_files import annotation, image, write_dataset

TEXT = "Où est l’été ?"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_an_encoding_that_the_file_tells_is_read(encoding: str) -> None:
    assert decode_text(f'{{"text": "{TEXT}"}}'.encode(encoding)) == f'{{"text": "{TEXT}"}}'


@pytest.mark.parametrize(("text", "encoding"), [
    ("能让人感到凉快的东西", "gb18030"), ("the 冰箱 there", "gb18030"), ("冷たい物", "shift_jis"), ("créée", "latin-1"), ("涼", "big5")])
def test_an_encoding_that_may_be_two_is_refused_and_can_be_named(text: str, encoding: str) -> None:
    with pytest.raises(RowError, match="encoding="):
        decode_text(text.encode(encoding))
    assert decode_text(text.encode(encoding), encoding) == text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_coco_files_of_windows_tools(tmp_path: Path, encoding: str) -> None:
    keys = write_dataset(tmp_path, [image()], [annotation(1)])
    file = Path(keys["annotations"])
    file.write_bytes(file.read_text().encode(encoding))
    assert len(build_all(CocoSource(**keys))[0]) == 1
    file.write_bytes(file.read_text(encoding).replace('"cat"', '"冰箱"').encode("gbk"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        CocoSource(**keys).plan()


@pytest.mark.parametrize(("field", "value", "is_kept"), [
    ("area", "NaN", True), ("score", "-Infinity", True), ("bbox", "[NaN, 1, 2, 3]", True),
    ("note", '"NaN is a string, \\" Infinity too"', True),
    ("segmentation", "[[2, 2, 8, 2, 8, NaN]]", False), ("segmentation", "[[2, 2, 8, Infinity, 8, 8]]", False),
    ("segmentation", f"[[2, 2, 8, {'9' * 400}, 8, 8]]", False), ("area", "1e999", True), ("area", "9" * 400, True),
    ("segmentation", '[["2", "2", "x", "2", "8", "8"]]', False), ("segmentation", "[2, 2, 8, 2, 8, 8]", False),
    ("segmentation", "[[[[2, 2], [8, 2], [8, 8]]]]", False), ("segmentation", "[]", False), ("segmentation", "null", False)])
def test_a_number_that_json_has_not_is_refused_only_where_it_is_used(tmp_path: Path, field: str, value: str, is_kept: bool) -> None:
    keys = write_dataset(tmp_path, [image()], [annotation(1, category_id=2), annotation(2) | {field: "VALUE"}])
    file = Path(keys["annotations"])
    file.write_text(file.read_text().replace('"VALUE"', value))
    (row,), rejected = build_all(CocoSource(**keys))
    assert [each.annotation_id for each in rejected] == ([] if is_kept else ["2"])
    assert len(row["regions"]) == 1 + is_kept


def test_a_table_with_a_byte_order_mark() -> None:
    table = "Idx\tRatio\tName\n1\t0.1\twall, side\n".encode("utf-8-sig")
    assert _read_names(table, "x") == {1: "wall"}
    with pytest.raises(ConfigError):
        _read_names("Idx\tName\n1\t冰箱\n".encode("gbk"), "x")


def write_reason_seg(folder: Path, shapes: list[dict[str, Any]], text: str = "the cup", encoding: str = "utf-8") -> ReasonSegSource:
    (folder / "val").mkdir(parents=True)
    (folder / "val/a.jpg").write_bytes(make_photo(height=40, width=60))
    content = json.dumps({"text": [text], "is_sentence": False, "shapes": shapes, "version": None}, ensure_ascii=False)
    (folder / "val/a.json").write_bytes(content.encode(encoding))
    return ReasonSegSource(input=str(folder), split="val")


@pytest.mark.parametrize(("kind", "points", "area"), [
    ("rectangle", [[10, 10], [29, 19]], 20 * 10), ("rectangle", [[29, 19], [10, 10]], 20 * 10),
    ("circle", [[30, 20], [30, 30]], np.pi * 10.5 ** 2), ("polygon", [[10, 10], [29, 10], [29, 19], [10, 19]], 200),
    (None, [[10, 10], [29, 10], [29, 19], [10, 19]], 200)])
def test_labelme_shapes_that_cover_an_area(tmp_path: Path, kind: str | None, points: list[Any], area: float) -> None:
    (row,), rejected = build_all(write_reason_seg(tmp_path, [{"label": "target", "points": points, "shape_type": kind}]))
    assert not rejected and rle_to_mask(region_rle(row["regions"][0])).sum() == pytest.approx(area, rel=0.05)


@pytest.mark.parametrize(("kind", "points"), [
    ("line", [[1, 1], [9, 9]]), ("linestrip", [[1, 1], [9, 9], [9, 1]]), ("point", [[1, 1]]), ("points", [[1, 1], [2, 2]]),
    ("mask", [[1, 1], [9, 9]]), ("ellipse", [[1, 1], [9, 9]]), (7, [[1, 1], [9, 9]]), ("rectangle", [[1, 1], [9, 9], [5, 5]]),
    ("circle", [[1, 1]]), ("rectangle", [[1, 1], [1e9, 9]])])
def test_labelme_shapes_that_do_not_are_set_aside(tmp_path: Path, kind: Any, points: list[Any]) -> None:
    rows, (rejected,) = build_all(write_reason_seg(tmp_path, [{"label": "target", "points": points, "shape_type": kind}]))
    assert not rows and rejected.reason in ("shape_not_area", "polygon_invalid") and str(kind) in rejected.detail


def test_a_labelme_file_of_east_asia_is_never_read_as_western_text(tmp_path: Path) -> None:
    shapes = [{"label": "target", "points": [[10, 10], [29, 10], [29, 19]]}]
    source = write_reason_seg(tmp_path, shapes, "能让人感到凉快的东西", "gb18030")
    rows, (rejected,) = build_all(source)
    assert not rows and rejected.reason == "encoding_unknown" and "gb18030" in rejected.detail
    (row,), _ = build_all(source.model_copy(update={"encoding": "gb18030"}))
    assert any("能让人感到凉快的东西" in (each["question"] or "") for each in row["conversations"])
