"""storage.py and the shard writer against a real S3 store."""

import subprocess
import sys
from pathlib import Path

import pytest

from pixellm import s3, storage
from pixellm.data.manifest import read_manifest
from pixellm.data.shards import ShardOptions, verify_checksums, write_shards
from pixellm.errors import ShardError, StorageError
from tests.data.rows import make_row
from tests.fixtures_s3 import S3Store


def test_bytes_round_trip_list_and_delete(s3_store: S3Store) -> None:
    uri = storage.join_uri(s3_store.uri, "a/b.bin")
    data = bytes(range(256)) * 40_000  # 10 MB: more than one part
    storage.write_bytes(uri, data)
    storage.write_bytes(storage.join_uri(s3_store.uri, "a/c.txt"), b"c")
    assert storage.read_bytes(uri) == data
    assert storage.exists(uri) and storage.exists(storage.join_uri(s3_store.uri, "a"))
    assert storage.list_files(s3_store.uri) == [uri, storage.join_uri(s3_store.uri, "a/c.txt")]
    assert storage.list_files(s3_store.uri, suffix=".txt") == [storage.join_uri(s3_store.uri, "a/c.txt")]
    storage.delete(uri)
    assert not storage.exists(uri)
    storage.delete(storage.join_uri(s3_store.uri, "a"))
    assert storage.list_files(s3_store.uri) == []
    storage.delete(storage.join_uri(s3_store.uri, "a"))


def test_folder_round_trip_and_local_copy_follows_changes(s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "up/deep").mkdir(parents=True)
    (tmp_path / "up/config.json").write_text("{}")
    (tmp_path / "up/deep/weights").write_bytes(b"w" * 100)
    uri = storage.join_uri(s3_store.uri, "model")
    storage.upload_folder(tmp_path / "up", uri)
    storage.download_folder(uri, tmp_path / "down")
    assert (tmp_path / "down/deep/weights").read_bytes() == b"w" * 100
    first = storage.local_copy(uri)
    assert first == storage.local_copy(uri) and (first / "config.json").read_text() == "{}"
    storage.write_bytes(storage.join_uri(uri, "config.json"), b"{ }")
    assert (storage.local_copy(uri) / "config.json").read_text() == "{ }"
    assert storage.local_copy(storage.join_uri(uri, "deep/weights")).read_bytes() == b"w" * 100


COUNT_DOWNLOADS = """
import sys
from pixellm import storage
begun, download = [], storage.download_folder
storage.download_folder = lambda *arguments: (begun.append(1), download(*arguments))
copied = storage.local_copy(sys.argv[1])
print(len(begun), (copied / "weights").stat().st_size)
"""


def test_processes_of_a_node_download_a_model_once(s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join_uri(s3_store.uri, "model")
    storage.write_bytes(storage.join_uri(uri, "weights"), bytes(20 << 20))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    processes = [subprocess.Popen([sys.executable, "-c", COUNT_DOWNLOADS, uri], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    printed = sorted(process.communicate(timeout=120)[0].split() for process in processes)
    assert printed == [["0", str(20 << 20)]] * 3 + [["1", str(20 << 20)]]


def test_a_download_that_broke_off_begins_anew(s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = storage.join_uri(s3_store.uri, "model")
    storage.write_bytes(storage.join_uri(uri, "weights"), b"w" * 100)
    monkeypatch.setattr(storage.tempfile, "gettempdir", lambda: str(tmp_path))

    def break_off(uri: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
        raise StorageError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "download_folder", break_off)
        with pytest.raises(StorageError, match="gone"):
            storage.local_copy(uri)
    (cache,) = tmp_path.glob("pixellm-cache-*")
    (lock,) = cache.iterdir()
    lock.with_suffix(".part").mkdir()  # a killed process leaves its part
    (lock.with_suffix(".part") / "older").touch()
    copied = storage.local_copy(uri)
    assert [file.name for file in copied.iterdir()] == ["weights"] and (copied / "weights").read_bytes() == b"w" * 100


def test_errors_name_the_uri_and_the_next_step(s3_store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = storage.join_uri(s3_store.uri, "nothing")
    with pytest.raises(StorageError, match=r"nothing.*does not exist"):
        storage.read_bytes(missing)
    with pytest.raises(StorageError, match="has no files"):
        storage.download_folder(missing, tmp_path / "x")
    with pytest.raises(StorageError, match="does not exist"):
        storage.local_copy(missing)
    with pytest.raises(StorageError, match="whole bucket"):
        storage.delete("s3://pixellm-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match=r"nothing.*credentials"):
        storage.write_bytes(missing, b"x")


def test_shards_on_s3_are_replaced_whole_and_verified(s3_store: S3Store) -> None:
    uri = storage.join_uri(s3_store.uri, "shards")
    options = ShardOptions(shard_size_mb=0.003, row_group_mb=0.001)
    first = write_shards([make_row(index) for index in range(12)], uri, options)
    assert len(first.shards) > 1
    assert verify_checksums(uri) == first == read_manifest(uri)
    second = write_shards([make_row(index) for index in range(3)], uri, options)
    assert len(second.shards) < len(first.shards)
    assert len(storage.list_files(uri, suffix=".parquet")) == len(second.shards)
    storage.delete(second.shard_uris(uri)[0])
    with pytest.raises(ShardError, match="is missing"):
        read_manifest(uri)


KEYS = "aws_access_key_id = {AWS_ACCESS_KEY_ID}\naws_secret_access_key = {AWS_SECRET_ACCESS_KEY}\nregion = eu-north-1\n"
SETTINGS = {  # environment (None: unset) and profile `own`, whose {names} are the store's values
    "the environment of S3 alone": ({"AWS_ENDPOINT_URL_S3": "{AWS_ENDPOINT_URL}", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, ""),
    "a default region": ({"AWS_REGION": None, "AWS_DEFAULT_REGION": "eu-north-1"}, ""),
    "the profile's endpoint": ({"AWS_PROFILE": "own", "AWS_ENDPOINT_URL": None, "AWS_ACCESS_KEY_ID": None,
                                "AWS_SECRET_ACCESS_KEY": None, "AWS_REGION": None},
                               "[profile own]\nendpoint_url = {AWS_ENDPOINT_URL}\n" + KEYS),
    "the profile's services": ({"AWS_PROFILE": "own", "AWS_ENDPOINT_URL": None, "AWS_ACCESS_KEY_ID": None,
                                "AWS_SECRET_ACCESS_KEY": None, "AWS_REGION": None},
                               "[profile own]\nservices = mine\nendpoint_url = http://127.0.0.1:9\n" + KEYS
                               + "[services mine]\ns3 =\n  endpoint_url = {AWS_ENDPOINT_URL}\n"),
    "the environment before the profile": ({"AWS_PROFILE": "own"}, "[profile own]\nendpoint_url = http://127.0.0.1:9\n" + KEYS),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_both_clients_go_to_the_store_that_the_settings_name(s3_store, tmp_path, monkeypatch, name):
    """Each client reads what the other wrote; every wrong choice leads to a port where nothing listens."""
    environment, profile = SETTINGS[name]
    (tmp_path / "config").write_text(profile.format(**s3_store.environment))
    for variable, value in {"AWS_CONFIG_FILE": str(tmp_path / "config"), **environment}.items():
        if value is None:
            monkeypatch.delenv(variable)
        else:
            monkeypatch.setenv(variable, value.format(**s3_store.environment))
    (tmp_path / "up").mkdir()
    (tmp_path / "up/a").write_text("by boto3")
    uri = f"s3://pixellm-test/settings/{list(SETTINGS).index(name)}"
    storage.upload_folder(tmp_path / "up", uri)
    assert storage.read_bytes(f"{uri}/a") == b"by boto3"
    filesystem, _ = storage.open_filesystem(uri)
    client = s3.boto3_client()
    assert client.meta.endpoint_url == s3.read_s3_settings().endpoint == s3_store.environment["AWS_ENDPOINT_URL"]
    assert filesystem.region == client.meta.region_name == s3.read_s3_settings().region
