"""The photo that an annotation means: the right one or none, never another one of the same base name."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pixellm.data.sources.coco import CocoSource
from pixellm.data.sources.llava_instruct import LlavaInstructSource
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.plan import PlanDraft
from pixellm.errors import RowError
from tests.data.sources.build import build_all
from tests.data.sources.instances_files import CATEGORIES, annotation, image, write_dataset

NFC, NFD = (unicodedata.normalize(form, "café 1.jpg") for form in ("NFC", "NFD"))


def make_folder(root: Path, *files: str) -> PhotoFolder:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    return PhotoFolder(str(root))


def find(folder: PhotoFolder, root: Path, **image: Any) -> str:
    """The path below the folder, or the reason why there is none."""
    try:
        uri = folder.find(image)
    except RowError as error:
        return error.reason
    assert folder.size_bytes(uri) == len(Path(uri).read_bytes()), "an exact URI of a file that is there"
    return uri.removeprefix(f"{root}/")


@pytest.mark.parametrize(("files", "name", "expected"), [
    # the exact path
    (["a/cam0/f.jpg", "b/cam0/f.jpg"], "a/cam0/f.jpg", "a/cam0/f.jpg"), (["f.jpg", "x/f.jpg"], "f.jpg", "f.jpg"),
    (["A.jpg", "a.jpg"], "a.jpg", "a.jpg"), (["a%20b.jpg", "a b.jpg"], "a%20b.jpg", "a%20b.jpg"), ([NFC, NFD], NFD, NFD),
    (["50%.jpg", "100%25.jpg"], "50%.jpg", "50%.jpg"), (["a#1?b=c.jpg"], "a#1?b=c.jpg", "a#1?b=c.jpg"),
    # a part of the path is not given, or is not on this disk
    (["train2017/1.jpg", "val2017/2.jpg"], "1.jpg", "train2017/1.jpg"), (["1.jpg"], "train2017/1.jpg", "1.jpg"),
    (["cam1/1.jpg", "cam2/1.jpg"], "images/cam2/1.jpg", "cam2/1.jpg"), (["1.jpg", "x/a/1.jpg"], "a/1.jpg", "x/a/1.jpg"),
    (["a.jpg"], "/home/annotator/photos/a.jpg", "a.jpg"), (["a.jpg"], "./a.jpg", "a.jpg"), (["x/a.jpg"], ".//x//a.jpg", "x/a.jpg"),
    (["x/a.jpg"], "../y/../x/a.jpg", "x/a.jpg"),
    # never the photo of another folder
    (["video1/0001.jpg"], "video2/0001.jpg", "photo_missing"), (["a/cam0/f.jpg"], "c/cam0/f.jpg", "photo_missing"),
    (["images/video1/0001.jpg"], "images/video2/0001.jpg", "photo_missing"), (["b/0001.jpg"], "/data/a/0001.jpg", "photo_missing"),
    (["video1/0001.jpg"], "video2\\0001.jpg", "photo_missing"), (["video1/0001.jpg"], "https://host/video2/0001.jpg", "photo_missing"),
    (["video1/0001.JPG"], "video2/0001.jpg", "photo_missing"), (["a.jpg"], "../secret.jpg", "photo_missing"),
    (["xa.jpg", "dir/xa.jpg"], "a.jpg", "photo_missing"),
    # several fit
    (["train/1.jpg", "val/1.jpg"], "1.jpg", "photo_ambiguous"), (["x/cam0/f.jpg", "y/cam0/f.jpg"], "cam0/f.jpg", "photo_ambiguous"),
    (["A.jpg", "a.JPG"], "a.jpg", "photo_ambiguous"), (["x/A.jpg", "y/a.jpg"], "A.jpg", "x/A.jpg"),
    # other ways to write it
    (["images/a.jpg"], "images\\a.jpg", "images/a.jpg"), (["a.jpg"], "C:\\Users\\me\\photos\\a.jpg", "a.jpg"),
    (["images\\a.jpg"], "images/a.jpg", "images\\a.jpg"), (["a b.jpg"], "a%20b.jpg", "a b.jpg"), (["a%20b.jpg"], "a b.jpg", "a%20b.jpg"),
    ([NFD], NFC, NFD), ([NFC], NFD, NFC), ([NFD], "images\\caf\u00e9%201.jpg", NFD), (["x/IMG_1.JPG"], "x/img_1.jpg", "x/IMG_1.JPG"),
    (["Video2/1.jpg", "1.jpg"], "video2/1.jpg", "Video2/1.jpg"), (["a .jpg"], "a .jpg", "a .jpg"), (["a.jpg"], "a.jpg ", "a.jpg"),
    (["a.jpg "], "a.jpg", "a.jpg "),
    # URLs, also in file_name
    (["train2017/1.jpg", "val2017/1.jpg"], "http://images.cocodataset.org/val2017/1.jpg", "val2017/1.jpg"),
    (["1.jpg"], "https://host/a/1.jpg?width=3#top", "1.jpg"), (["x/\u732b.jpg"], "https://host/x/%E7%8C%AB.jpg", "x/\u732b.jpg"),
    (["x/a.jpg"], "file:///home/me/x/a.jpg", "x/a.jpg"), (["x/a.jpg"], "s3://bucket/data/x/a.jpg", "x/a.jpg"),
    (["x/a.jpg"], "/data/local-files/?d=photos%2Fx%2Fa.jpg", "x/a.jpg"), (["a.jpg"], "http://[broken/a.jpg", "a.jpg"),
    # COCO's names of 2014 for the files of 2017
    (["000000544519.jpg"], "COCO_val2014_000000544519.jpg", "000000544519.jpg"),
    (["val2017/000000544519.jpg"], "COCO_val2014_000000544519.jpg", "val2017/000000544519.jpg"),
    (["train2017/000000544519.jpg"], "val2014/COCO_val2014_000000544519.jpg", "train2017/000000544519.jpg"),
    (["val2017/000000544519.jpg"], "train2017/000000544519.jpg", "photo_missing"),
])
def test_the_photo_that_a_name_means(tmp_path: Path, files: list[str], name: str, expected: str) -> None:
    assert find(make_folder(tmp_path, *files), tmp_path, file_name=name) == expected
    if "://" in name:
        assert find(make_folder(tmp_path, *files), tmp_path, coco_url=name, file_name=None) == expected


def test_the_second_name_decides_where_the_first_does_not(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "train2017/1.jpg", "val2017/1.jpg")
    assert find(folder, tmp_path, file_name="1.jpg", coco_url="http://images.cocodataset.org/val2017/1.jpg") == "val2017/1.jpg"
    with pytest.raises(RowError, match=r"1\.jpg can be each of 2 photos below .*: train2017/1\.jpg, val2017/1\.jpg"):
        folder.find({"file_name": "1.jpg"})
    with pytest.raises(RowError, match=r"no test2017/1\.jpg below .*; in another folder .*: train2017/1\.jpg, val2017/1\.jpg"):
        folder.find({"file_name": "test2017/1.jpg"})


def test_one_file_of_two_images_is_told(tmp_path: Path) -> None:
    draft = PlanDraft("coco", "train", make_folder(tmp_path, "a.jpg", "b.jpg"))
    for number, name in enumerate(("a.jpg", "./A.jpg", "b.jpg", "x/b.jpg")):
        draft.add(str(number), {"file_name": name}, {})
    plan = draft.finish(None, "1")  # type: ignore[arg-type]
    assert plan.records["image_id"].to_pylist() == ["0", "2"]
    assert plan.records["is_complete"].to_pylist() == [False, False], "what the second image marks is not marked in the first"
    assert [(each.image_id, each.reason) for each in plan.rejected] == [("1", "duplicate_photo"), ("3", "duplicate_photo")]
    assert f"images 0 and 1 are one file, {tmp_path}/a.jpg" in plan.rejected[0].detail


def test_nothing_is_denied_in_a_photo_of_two_images(tmp_path: Path) -> None:
    """A thing that the second image marks may be what the first one seems not to have."""
    keys = write_dataset(tmp_path, [image(1), image(2, file_name="1.jpg"), image(3)],
                         [annotation(number, number, category_id=number % 2 + 1) for number in (1, 2, 3)], CATEGORIES)
    rows, rejected = build_all(CocoSource(**keys, absent_share=0.9, questions_per_photo=9))
    assert [(each.image_id, each.reason) for each in rejected] == [("2", "duplicate_photo")]
    assert {row["image_id"]: all(each["targets"] for each in row["conversations"]) for row in rows} == {"1": True, "3": False}


def test_names_that_are_not_utf8_are_set_aside_and_stop_nothing(tmp_path: Path) -> None:
    make_folder(tmp_path, "a.jpg")
    Path(str(tmp_path) + "/caf\udce9.jpg").touch()
    draft = PlanDraft("coco", "train", PhotoFolder(str(tmp_path)))
    draft.add("1", {"file_name": "café.jpg"}, {})
    missing, odd = draft.finish(None, "1").rejected  # type: ignore[arg-type]
    assert missing.reason == "photo_missing" and "not UTF-8 are caf\\xe9.jpg" in missing.detail
    assert (odd.image_id, odd.reason) == ("caf\\xe9.jpg", "name_not_utf8")


def test_photos_of_one_base_name_are_two_photos(tmp_path: Path) -> None:
    """LLaVA's mixes name GQA's, VG's and COCO's photos in one file."""
    make_folder(tmp_path, "gqa/images/7.jpg", "vg/VG_100K/7.jpg", "coco/train2017/000000000030.jpg")
    turns = '"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]'
    names = ("gqa/images/7.jpg", "vg/VG_100K/7.jpg", "coco/train2017/000000000030.jpg", "gqa/images/7.jpg", "vg/VG_100K_2/7.jpg")
    entries = ", ".join(f'{{"image": "{name}", {turns}}}' for name in names)
    (tmp_path / "llava_instruct_150k.json").write_text(f"[{entries}]")
    plan = LlavaInstructSource(input=str(tmp_path)).plan()
    rows = plan.records.to_pylist()
    assert [(row["image_id"], row["photo_uri"].removeprefix(f"{tmp_path}/"), row["payload"].count(b'"image"')) for row in rows] == [
        ("7", "gqa/images/7.jpg", 2), ("vg/VG_100K/7.jpg", "vg/VG_100K/7.jpg", 1), ("30", "coco/train2017/000000000030.jpg", 1)]
    assert [(each.image_id, each.reason) for each in plan.rejected] == [("vg/VG_100K_2/7.jpg", "photo_missing")]


def test_a_stem_means_the_photo_beside_it_or_of_the_same_place(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "aachen/1.png", "bonn/1.jpg", "bonn/2.webp", "bonn/3.jpg", "bonn/3.png", "4.x.jpeg")
    assert [folder.path_of_stem(stem) for stem in ("aachen/1", "bonn/1", "2", "train/4.x", "cologne/1", "5")] == [
        "aachen/1.png", "bonn/1.jpg", "bonn/2.webp", "4.x.jpeg", None, None]
    for stem in ("1", "bonn/3"):
        with pytest.raises(RowError, match="photo_ambiguous"):
            folder.path_of_stem(stem)
