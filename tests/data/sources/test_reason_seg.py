"""reason_seg.py: ReasonSeg's files to rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixellm.data.schema import region_rle
from pixellm.data.sources.reason_seg import ReasonSegSource
from pixellm.errors import ConfigError
from pixellm.masks import rle_to_mask
from tests.data.rows import make_photo
from tests.data.sources.build import build_all


def shape(label: str, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    """A rectangle; its outline belongs to it."""
    return {"label": label, "labels": [label], "shape_type": "polygon", "group_id": None, "flags": {},
            "points": [[left, top], [right, top], [right, bottom], [left, bottom]]}


def annotation(**changes: Any) -> dict[str, Any]:
    return {"text": ["What could one sit on?"], "is_sentence": True, "shapes": [shape("target", 2, 2, 7.9, 7)]} | changes


def write_reason_seg(folder: Path, files: dict[str, Any], explanations: list[dict] = (), **photo: Any) -> ReasonSegSource:  # type: ignore[assignment]
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / "explanatory").mkdir(exist_ok=True)
    for stem, content in files.items():
        (folder / f"train/{stem}.jpg").write_bytes(make_photo(**photo))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"train/{stem}.json").write_bytes(data)
    (folder / "explanatory/train.json").write_text(json.dumps(list(explanations)))
    return ReasonSegSource(input=str(folder), split="train")


def test_target_and_ignore_with_exact_pixels(tmp_path: Path) -> None:
    """The smaller shape lies on top whatever it is: an ignored hole in a target, a target in an ignored surrounding."""
    shapes = [shape("ignore_hole", 3, 3, 4, 4), shape("target", 2, 2, 7.9, 7), shape("Flag", 0, 0, 15, 11), shape("target", 10, 2, 11, 3),
              shape("ignore", 9, 0, 15, 10)]
    (row,), rejected = build_all(write_reason_seg(tmp_path, {"a": annotation(shapes=shapes)}))
    expected = np.zeros((12, 16), dtype=int)
    expected[0:11, 9:16] = 2
    expected[2:8, 2:8] = 1
    expected[2:4, 10:12] = 1
    expected[3:5, 3:5] = 2
    target, ignore = row["regions"]
    np.testing.assert_array_equal(rle_to_mask(region_rle(target)), expected == 1)
    np.testing.assert_array_equal(rle_to_mask(region_rle(ignore)), expected == 2)
    assert not rejected and not target["ignore"] and ignore["ignore"]
    assert (row["image_id"], row["source"], row["split"]) == ("a", "reason_seg", "train")


def test_a_sentence_is_kept_whole_and_a_phrase_goes_into_a_template(tmp_path: Path) -> None:
    files = {"a": annotation(text=["What could one sit on?", "Find the seat"]), "b": annotation(text=["The Red Chair."], is_sentence=False)}
    rows, _ = build_all(write_reason_seg(tmp_path, files))
    first, second = rows[0]["conversations"]
    assert first["question"].startswith("What could one sit on? ") and second["question"].startswith("Find the seat. ")
    (phrase,) = rows[1]["conversations"]
    assert "the red chair" in phrase["question"]
    for each in (first, second, phrase):
        assert each["targets"] == [[0]] and each["task"] == "reasoning" and each["answer"].count("{seg}") == 1


def test_explanations_are_asked_for_with_a_mask_and_now_and_then_alone(tmp_path: Path) -> None:
    files = {f"p{number}": annotation() for number in range(60)}
    explanations = [{"image": f"p{number}.jpg", "query": "What could one sit on, and why?", "outputs": "The chair has a seat."}
                    for number in range(50)]
    rows, rejected = build_all(write_reason_seg(tmp_path, files, explanations))
    assert not rejected and len(rows) == 60
    by_kind = {"mask": 0, "both": 0, "text": 0}
    for row in rows:
        for each in row["conversations"]:
            explained = each["answer"].endswith("The chair has a seat.")
            by_kind["text" if not each["targets"] else "both" if explained else "mask"] += 1
            assert explained or each["targets"]
    assert by_kind["mask"] == 60 and by_kind["both"] == 50 and 3 <= by_kind["text"] <= 20


def test_the_seed_and_the_photo_alone_decide_the_text(tmp_path: Path) -> None:
    source = write_reason_seg(tmp_path, {f"p{number}": annotation() for number in range(10)})
    assert build_all(source) == build_all(source) != build_all(ReasonSegSource(input=source.input, split="train", seed=1))


def test_utf8_and_cp1252(tmp_path: Path) -> None:
    text = json.dumps(annotation(text=["Who’s at the café?"]), ensure_ascii=False)
    rows, _ = build_all(write_reason_seg(tmp_path, {"a": text.encode(), "b": text.encode("cp1252")}))
    assert all(row["conversations"][0]["question"].startswith("Who’s at the café?") for row in rows) and len(rows) == 2


def test_annotations_are_for_the_upright_photo(tmp_path: Path) -> None:
    (row,), _ = build_all(write_reason_seg(tmp_path, {"a": annotation()}, orientation=6))
    assert (row["height"], row["width"], row["regions"][0]["area"]) == (16, 12, 36)


@pytest.mark.parametrize(("bad", "reason"), [
    (b"{", "annotation_invalid"),
    (b"\x81", "encoding_unknown"),
    ({"text": [], "is_sentence": True}, "annotation_invalid"),
    (annotation(text=[]), "no_usable_annotation"),
    (annotation(shapes=[]), "empty_mask"),
    (annotation(shapes=[shape("flag", 2, 2, 7, 7)]), "empty_mask"),
    (annotation(shapes=[shape("target", 2, 2, 1e9, 7)]), "polygon_invalid"),
    (annotation(shapes=[shape("target", 2, 2, 7, 7) | {"points": []}]), "polygon_invalid"),
])
def test_a_bad_photo_is_set_aside_and_the_rest_goes_on(tmp_path: Path, bad: Any, reason: str) -> None:
    rows, (rejected,) = build_all(write_reason_seg(tmp_path, {"a": bad, "b": annotation()}))
    assert (rejected.image_id, rejected.reason) == ("a", reason) and [row["image_id"] for row in rows] == ["b"]


@pytest.mark.parametrize(("text", "reason"), [(" ", "empty_text"), ("Where is {seg}?", "seg_in_question")])
def test_a_bad_text_is_set_aside_and_the_photo_goes_on(tmp_path: Path, text: str, reason: str) -> None:
    (row,), (rejected,) = build_all(write_reason_seg(tmp_path, {"a": annotation(text=[text, "Where?"])}))
    assert (rejected.reason, rejected.annotation_id) == (reason, "0") and len(row["conversations"]) == 1


def test_what_has_no_partner_is_set_aside(tmp_path: Path) -> None:
    source = write_reason_seg(tmp_path, {name: annotation() for name in "abc"})
    (tmp_path / "train/a.json").unlink()
    (tmp_path / "train/b.jpg").unlink()
    rows, rejected = build_all(source)
    assert [row["image_id"] for row in rows] == ["c"]
    assert {(each.image_id, each.reason) for each in rejected} == {("a", "labels_missing"), ("b", "photo_missing")}


def test_missing_folders_are_named_at_once_and_a_change_changes_the_version(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"photos and annotations .*train.*explanations .*train\.json"):
        ReasonSegSource(input=str(tmp_path), split="train").plan()
    versions = {write_reason_seg(tmp_path, {"a": annotation(text=[text])}).plan().version for text in ("Who?", "What?")}
    assert len(versions) == 2
