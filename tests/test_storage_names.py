"""Names that a store or a manifest made up: none of them is read or written outside of its folder."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from pixellm import storage
from pixellm.errors import StorageError
from pixellm.train.checkpoint import fetch_checkpoint

ENTRY = "<Contents><Key>{}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><Size>4</Size></Contents>"


@pytest.fixture
def hostile_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[str]], None]]:
    """An S3 store that lists the given keys, whatever it is asked for, and has four bytes for each."""
    keys: list[str] = []

    class Store(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            listing = "list-type" in self.path
            found = "".join(ENTRY.format(escape(key)) for key in keys)
            self.answer(f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>" if listing else "evil")

        def do_HEAD(self) -> None:
            self.answer("" if "." in self.path else None)

        def answer(self, body: str | None) -> None:
            self.send_response(404 if body is None else 200)
            data = (body or "").encode()
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "a",
                        "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    yield keys.extend
    server.shutdown()
    server.server_close()


def written_below(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("key", ["model/../../evil.txt", "model/a/../../../evil.txt", "other/evil.txt", "/etc/evil.txt", "model//evil.txt"])
def test_a_store_cannot_write_elsewhere(hostile_store, tmp_path, monkeypatch, key):
    hostile_store(["model/config.json", key])
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path))
    target = tmp_path / "deep" / "target"
    for take in (lambda: storage.download_folder("s3://b/model", target), lambda: storage.local_copy("s3://b/model"),
                 lambda: storage.list_files("s3://b/model"), lambda: storage.file_sizes("s3://b/model")):
        with pytest.raises(StorageError, match="cannot be the name of a file below s3://b/model"):
            take()
    assert written_below(tmp_path) == []


def test_what_is_below_is_taken_whatever_it_is_called(hostile_store, tmp_path):
    names = ["config.json", "..hidden/a.b", "a..b/c...d.txt", "..\\x.txt", "ü/☃.txt"]
    hostile_store([f"model/{name}" for name in names])
    storage.download_folder("s3://b/model", tmp_path / "to")
    assert written_below(tmp_path) == sorted(f"to/{name}" for name in names)


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "..", "/evil.txt"])
def test_a_manifest_cannot_name_what_is_elsewhere(tmp_path, name):
    (tmp_path / "evil.txt").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"step": 1, "files": {name: {"sha256": "0"}}}))
    with pytest.raises(StorageError, match="cannot be the name of a file below"):
        fetch_checkpoint(str(tmp_path / "run"), tmp_path / "to")
    assert written_below(tmp_path) == ["evil.txt", "run/manifest.json"]


@pytest.mark.parametrize("part", ["..", "../x", "a/../b", "a/..", "/../x", "a//b"])
def test_what_is_joined_stays_below(part):
    for uri in ("/photos", "s3://bucket/photos"):
        with pytest.raises(StorageError, match="cannot be the name"):
            storage.join_uri(uri, part)
