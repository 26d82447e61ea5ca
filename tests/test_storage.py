"""storage.py on local paths. The S3 side is in test_storage_s3.py."""

import os
import pickle
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from pixellm import storage
from pixellm.errors import StorageError


def test_write_replaces_in_one_piece_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    uri = str(tmp_path / "new/folder/a.bin")
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"two")
    assert storage.read_bytes(uri) == b"two"
    assert storage.list_files(tmp_path) == [uri]
    assert storage.exists(uri) and storage.exists(tmp_path / "new")
    assert oct(os.stat(uri).st_mode & 0o777) == "0o644"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = tmp_path / "a"
    storage.write_bytes(uri, b"old")

    def fail(*paths: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(storage.os, "replace", fail)
    with pytest.raises(StorageError, match="disk full"):
        storage.write_bytes(uri, b"new")
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(tmp_path) == [str(uri)]


def test_list_is_sorted_recursive_and_filtered(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.json"):
        storage.write_bytes(tmp_path / name, b"")
    assert storage.list_files(tmp_path, suffix=".txt") == [str(tmp_path / "a/z.txt"), str(tmp_path / "b.txt")]
    assert storage.list_files(tmp_path / "missing") == []


CLUTTER = ("._a.jpg", "__MACOSX/a/._a.jpg", "__MACOSX/a.jpg", ".DS_Store", "a/Thumbs.db", "a/desktop.ini", "@eaDir/a.jpg/SYNO_M.jpg",
           ".ipynb_checkpoints/a-checkpoint.jpg", ".thumbnails/a.jpg", "$RECYCLE.BIN/a.jpg", "a/.hidden/b/c.jpg", "THUMBS.DB")


def test_clutter_is_in_no_listing(tmp_path: Path) -> None:
    root = tmp_path / ".hidden_above"  # what lies above the folder that is listed does not matter
    kept = ["a._b.jpg", "a.jpg", "a/b.jpg", "macosx/a.jpg", "thumbs.db.jpg", "name ends with a space .jpg "]
    for name in (*CLUTTER, *kept):
        storage.write_bytes(root / name, b"12")
    found = storage.list_folder(root)
    assert found.sizes == dict.fromkeys(sorted(kept), 2) and found.not_utf8 == []
    assert storage.list_files(root) == [f"{root}/{name}" for name in found.sizes] == list(storage.file_sizes(root))


def test_names_that_are_not_utf8_are_told_and_left_out(tmp_path: Path) -> None:
    """pyarrow lists no folder that has one anywhere."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.jpg").touch()
    for name in (b"caf\xe9.jpg", b"a/\xc4\xe3.png"):  # Latin-1, GBK
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).touch()
    found = storage.list_folder(tmp_path)
    assert list(found.sizes) == ["a/b.jpg"] and found.not_utf8 == ["a/\\xc4\\xe3.png", "caf\\xe9.jpg"]
    with pytest.raises(StorageError, match=r"\\xc4\\xe3.png.*not UTF-8; rename"):
        storage.upload_folder(tmp_path, str(tmp_path / "copy"))


def test_links_are_followed_once(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "photos/a/b.jpg", b"12")
    storage.write_bytes(tmp_path / "elsewhere/c.jpg", b"123")
    for link, target in (("a/up", ".."), ("a/here", "."), ("itself", "itself"), ("nothing.jpg", "none"), ("linked", "../elsewhere"),
                         ("d.jpg", "a/b.jpg")):
        (tmp_path / "photos" / link).symlink_to(target)
    assert storage.list_folder(tmp_path / "photos").sizes == {"a/b.jpg": 2, "d.jpg": 2, "linked/c.jpg": 3}


def test_a_folder_can_be_left_out_whatever_it_is_called(tmp_path: Path) -> None:
    for name in ("photos/a.jpg", "photos/answers/b.jpg", "photos/answers2/c.jpg"):
        storage.write_bytes(tmp_path / name, b"")
    (tmp_path / "link").symlink_to("photos")
    for folder in (tmp_path / "photos/answers", f"{tmp_path}/photos/../photos/answers/", tmp_path / "link/answers"):
        assert list(storage.list_folder(tmp_path / "photos", leave_out=folder).sizes) == ["a.jpg", "answers2/c.jpg"]
        assert storage.path_below(tmp_path / "photos", folder) == "answers"
    assert len(storage.list_folder(tmp_path / "photos", leave_out=tmp_path).sizes) == 3
    assert storage.path_below(tmp_path, tmp_path / "link/..") == "" and storage.path_below(tmp_path / "link", tmp_path) is None
    assert storage.path_below(tmp_path, "s3://bucket/a") is None


def test_delete_takes_files_folders_and_what_is_not_there(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "a/b", b"")
    storage.delete(tmp_path / "a/b")
    assert storage.exists(tmp_path / "a")
    storage.delete(tmp_path / "a")
    storage.delete(tmp_path / "a")
    assert not storage.exists(tmp_path / "a")
    for dangerous in ("/no-such-top-level-folder", "s3://bucket", "s3://bucket/"):
        with pytest.raises(StorageError, match="refusing"):
            storage.delete(dangerous)


def test_folders_are_copied_beside_what_is_there(tmp_path: Path) -> None:
    for number in range(20):
        storage.write_bytes(tmp_path / f"from/{number % 3}/{number}", str(number).encode())
    storage.write_bytes(tmp_path / "to/other", b"stays")
    storage.upload_folder(tmp_path / "from", str(tmp_path / "to"))
    storage.download_folder(str(tmp_path / "to"), tmp_path / "back")
    assert storage.read_bytes(tmp_path / "back/1/19") == b"19"
    assert len(storage.list_files(tmp_path / "back")) == 21
    with pytest.raises(StorageError, match="has no files"):
        storage.download_folder(str(tmp_path / "missing"), tmp_path / "x")
    with pytest.raises(StorageError, match="not a folder"):
        storage.upload_folder(tmp_path / "missing", str(tmp_path / "x"))


def test_local_copy_of_a_local_path_is_the_path(tmp_path: Path) -> None:
    assert storage.local_copy(str(tmp_path)) == tmp_path
    with pytest.raises(StorageError, match="does not exist"):
        storage.local_copy(tmp_path / "missing")


@pytest.mark.parametrize(("uri", "message"), [
    ("gs://bucket/key", "scheme 'gs' is not supported"), ("s3://", "names no bucket"), ("", "empty URI"), ("s3:", "names no bucket"),
    ("s3://b//x", "write s3://b/x"), ("s3:///b/x", "write s3://b/x"), ("s3://b/x//", "write s3://b/x"), ("s3:/b/x", "write s3://b/x"),
    ("S3://b/x", "write s3://b/x"), ("s3:b/x", "write s3://b/x"), ("s3a://b/x", "write s3://b/x"), ("s3://b/./x", "write s3://b/x"),
    ("s3://b/../c/x", "write the key in full"),
])
def test_uris_that_cannot_be_opened(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        storage.open_filesystem(uri)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_paths_inside_the_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.open_filesystem("a/b")[1] == str(tmp_path / "a/b")
    assert storage.open_filesystem(f"file://{tmp_path}/a")[1] == str(tmp_path / "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    filesystem, path = storage.open_filesystem("s3://bucket/a/b/")
    assert isinstance(filesystem, pafs.S3FileSystem) and path == "bucket/a/b"
    assert filesystem.region == "us-east-1"
    assert storage.open_filesystem("s3://other")[0] is filesystem


def test_join_uri() -> None:
    assert storage.join_uri("s3://bucket/a/", "/b", "", "c/d") == "s3://bucket/a/b/c/d"
    assert storage.join_uri("/a") == "/a"


def test_an_error_in_a_thread_comes_out(tmp_path: Path) -> None:
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise StorageError("three")
        return number

    assert storage.run_parallel(fail_at_three, ((number,) for number in range(3))) == [0, 1, 2]
    with pytest.raises(StorageError, match="three"):
        storage.run_parallel(fail_at_three, ((number,) for number in range(50)))
