"""What sources of label maps share (label_maps.py), read through ADE20K folders."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixellm.data.sources.label_maps import read_label_map
from pixellm.errors import ConfigError, RowError
from pixellm.storage import upload_folder
from tests.data.rows import make_photo
from tests.data.sources.build import build_all
from tests.data.sources.label_map_files import NAMES, masks_of, random_labels, write_ade20k
from tests.fixtures_s3 import S3Store

LABELS = random_labels([0, 1, 2, 150])


def png(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", **options)
    return stream.getvalue()


def test_each_class_is_one_region_and_unlabelled_pixels_are_ignored(tmp_path: Path) -> None:
    (row,), rejected = build_all(write_ade20k(tmp_path, {"scene": LABELS}))
    assert not rejected
    assert (row["image_id"], row["source"], row["split"], row["height"], row["width"]) == ("scene", "ade20k", "val", 12, 16)
    assert row["image"] == (tmp_path / "images/validation/scene.jpg").read_bytes()
    masks = masks_of(row)
    assert list(masks) == ["wall", "floor", "flag"]
    for name, label in (("wall", 1), ("floor", 2), ("flag", 150)):
        np.testing.assert_array_equal(masks[name], label == LABELS)
    np.testing.assert_array_equal(masks_of(row, ignore=True)["unlabeled"], LABELS == 0)


def test_a_map_on_the_stored_pixels_of_a_turned_photo_is_turned_with_it(tmp_path: Path) -> None:
    (row,), _ = build_all(write_ade20k(tmp_path / "stored", {"scene": LABELS}, orientation=6))
    np.testing.assert_array_equal(masks_of(row)["floor"], np.rot90(LABELS == 2, -1))
    (row,), _ = build_all(write_ade20k(tmp_path / "upright", {"scene": LABELS.T.copy()}, orientation=6))
    np.testing.assert_array_equal(masks_of(row)["floor"], LABELS.T == 2)


def test_what_is_wrong_with_one_photo_sets_that_photo_aside(tmp_path: Path) -> None:
    names = ["good", "small", "cut_off", "colour", "strange", "empty", "no_photo", "no_map", "broken"]
    maps = dict.fromkeys(names, LABELS) | {"small": LABELS[:10], "strange": LABELS + 3, "empty": LABELS * 0}
    source = write_ade20k(tmp_path, maps)
    photos, labels = tmp_path / "images/validation", tmp_path / "annotations/validation"
    (labels / "cut_off.png").write_bytes((labels / "good.png").read_bytes()[:-40])
    (labels / "colour.png").write_bytes(png(Image.fromarray(np.stack([LABELS, LABELS, LABELS * 2], axis=-1))))
    (photos / "no_photo.jpg").unlink()
    (labels / "no_map.png").unlink()
    (photos / "broken.jpg").write_bytes((photos / "good.jpg").read_bytes()[:-40])
    rows, rejected = build_all(source)
    assert [row["image_id"] for row in rows] == ["good"]
    assert {each.image_id: each.reason for each in rejected} == {
        "small": "size_mismatch", "cut_off": "labels_unreadable", "colour": "labels_format", "strange": "unknown_label",
        "empty": "nothing_to_ask", "no_photo": "photo_missing", "no_map": "labels_missing", "broken": "photo_unreadable"}
    assert len(rejected) == 8
    assert next(each.detail for each in rejected if each.image_id == "small") == (
        "the photo is (12, 16) (h, w), its annotations are for (10, 16)")


def test_photos_and_maps_of_one_base_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path, {"scene": LABELS})
    photos, labels = tmp_path / "images/validation", tmp_path / "annotations/validation"
    for number, town in enumerate(("aachen", "bonn", "cologne")):
        for folder in (photos, labels):
            (folder / town).mkdir()
        (photos / town / "1.jpg").write_bytes(make_photo(seed=number))
        if town != "cologne":
            (labels / town / "1.png").write_bytes(png(Image.fromarray(np.roll(LABELS, number, axis=0))))
    (photos / "scene.jpg").unlink()
    (labels / "scene.png").unlink()
    rows, rejected = build_all(source)
    assert {row["image_id"]: row["image"] for row in rows} == {"aachen/1": make_photo(seed=0), "bonn/1": make_photo(seed=1)}
    np.testing.assert_array_equal(masks_of(rows[1])["floor"], np.roll(LABELS, 1, axis=0) == 2)
    assert [(each.image_id, each.reason) for each in rejected] == [("cologne/1", "labels_missing")]


def test_a_folder_without_maps_is_an_error(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path, {"scene": LABELS})
    (tmp_path / "annotations/validation/scene.png").unlink()
    with pytest.raises(ConfigError, match=r"annotations/validation has no label map \(\.png\)"):
        source.plan()


def test_the_version_follows_the_maps_and_the_names(tmp_path: Path) -> None:
    source = write_ade20k(tmp_path, {"scene": LABELS})
    versions = [source.plan().version, source.plan().version]
    (tmp_path / "objectInfo150.txt").write_text(NAMES.replace("flag", "banner"))
    versions.append(source.plan().version)
    write_ade20k(tmp_path, {"scene": LABELS, "other": LABELS})
    versions.append(source.plan().version)
    assert versions[0] == versions[1] and len(set(versions)) == 3


def test_the_same_from_s3(tmp_path: Path, s3_store: S3Store) -> None:
    source = write_ade20k(tmp_path, {"scene": LABELS, "other": LABELS})
    upload_folder(tmp_path, f"{s3_store.uri}/ade20k")
    remote = source.model_copy(update={"input": f"{s3_store.uri}/ade20k"})
    assert build_all(remote) == build_all(source) and remote.plan().version == source.plan().version


def test_the_builder_goes_to_workers_as_it_is(tmp_path: Path) -> None:
    plan = write_ade20k(tmp_path, {"scene": LABELS}).plan()
    assert pickle.loads(pickle.dumps(plan.builder)) == plan.builder


def test_stored_numbers_are_read_whatever_colours_a_png_gives_them() -> None:
    indexed = Image.fromarray(LABELS % 4, mode="P")
    indexed.putpalette([255, 0, 0, 255, 0, 0, 7, 7, 7, 0, 0, 255])  # the first two look alike
    for data in (png(indexed), png(indexed, transparency=1), png(indexed, bits=2)):
        np.testing.assert_array_equal(read_label_map(data), LABELS % 4)
    deep = LABELS.astype(np.uint16) * 300
    np.testing.assert_array_equal(read_label_map(png(Image.fromarray(deep))), deep)
    np.testing.assert_array_equal(read_label_map(png(Image.fromarray(np.stack([LABELS] * 3, axis=-1)))), LABELS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
def test_a_picture_is_no_label_map(mode: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)).convert(mode)
    with pytest.raises(RowError, match=f"labels_format.*found mode {mode}"):
        read_label_map(png(picture))


def test_a_jpeg_is_no_label_map() -> None:
    stream = io.BytesIO()
    Image.fromarray(LABELS).save(stream, format="JPEG")
    with pytest.raises(RowError, match="labels_unreadable"):
        read_label_map(stream.getvalue())
