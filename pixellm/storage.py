"""The one place that turns a URI into a filesystem: a local path, or `s3://bucket/key` on any S3-compatible store.

The store's settings are s3.py's. A name that comes from elsewhere, a listing or a manifest, never leads out of its folder.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs as pafs

from pixellm.errors import StorageError, StorageUnavailableError
from pixellm.local_files import FileInfo, is_clutter, is_utf8, to_printable, walk_files
from pixellm.s3 import arrow_filesystem, read_s3_settings
from pixellm.s3 import boto3_client as _boto3_client

NUM_COPY_THREADS = 8
COPY_CHUNK_BYTES = 4 << 20
UPLOAD_PART_BYTES = 16 << 20
_S3_SCHEME = re.compile(r"s3[an]?:/*", re.IGNORECASE)

T = TypeVar("T")


def open_filesystem(uri: str | Path) -> tuple[pafs.FileSystem, str]:
    """The filesystem of `uri` and the path inside it (`bucket/key` for S3, an absolute path otherwise).

    S3 requests that fail for a passing reason (throttling, 5xx, a broken connection) are tried again, as s3.py says.
    Raises StorageError for a scheme that is not known, for an S3 URI that is not spelt s3://bucket/key, and for settings that do not hold.
    """
    text = str(uri)
    if _S3_SCHEME.match(text):
        return arrow_filesystem(), _s3_path(text)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif "://" in text:
        raise StorageError(f"{text!r}: scheme {text.partition('://')[0]!r} is not supported; use a local path or s3://bucket/key")
    if not text:
        raise StorageError("an empty URI; use a local path or s3://bucket/key")
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text))


def join_uri(uri: str | Path, *parts: str) -> str:
    """`uri` with `parts` below it, one slash between them. Raises StorageError for parts that lead out of it (`..`)."""
    names = [part.strip("/") for part in parts if part.strip("/")]
    for name in names:
        _check_below(name, uri)
    return "/".join([str(uri).rstrip("/"), *names])


def absolute_uri(uri: str | Path) -> str:
    """`uri` for workers, whose working directory is another: a local path made absolute, an S3 URI checked. Raises StorageError."""
    return f"s3://{_s3_path(str(uri))}" if _S3_SCHEME.match(str(uri)) else open_filesystem(uri)[1]


def read_bytes(uri: str | Path) -> bytes:
    """The whole file. Raises StorageError."""
    filesystem, path = open_filesystem(uri)
    with _explained("read", uri), filesystem.open_input_stream(path) as stream:
        return stream.read()


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write a file in one piece: a reader sees the old content or the new, never a part. Parent folders are made. Raises StorageError."""
    filesystem, path = open_filesystem(uri)
    with _explained("write", uri):
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=Path(path).parent, prefix=f".{Path(path).name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def open_output(uri: str | Path) -> Iterator[Any]:
    """A stream to write the file piece by piece: on a local disk what is written so far is there under its name. Raises StorageError."""
    filesystem, path = open_filesystem(uri)
    with _explained("write", uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_output_stream(path) as stream:
            yield stream


def exists(uri: str | Path) -> bool:
    """Whether `uri` is a file or a folder. Raises StorageError when the store cannot be asked."""
    filesystem, path = open_filesystem(uri)
    with _explained("look at", uri):
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound


@dataclass(frozen=True)
class Listing:
    """The files below the folder `uri`: `sizes` are their bytes by their path below it, sorted.

    `not_utf8` are the paths of files that are left out because rows and reports cannot hold their names; odd bytes stand as `\\xNN`.
    """

    uri: str
    sizes: dict[str, int]
    not_utf8: list[str]

    def uri_of(self, path: str) -> str:
        """URI of a file of `sizes`."""
        return f"{self.uri.rstrip('/')}/{path}"


def list_folder(uri: str | Path, leave_out: str | Path | None = None) -> Listing:
    """All files below the folder `uri` but clutter (`local_files.is_clutter`) and what lies below the folder `leave_out`.

    A folder that does not exist has no files. Raises StorageError for one that cannot be listed.
    """
    _, root = open_filesystem(uri)
    omitted = None if leave_out is None else path_below(uri, leave_out)
    sizes: dict[str, int] = {}
    not_utf8: list[str] = []
    for info in _file_infos(uri):
        path = info.path.removeprefix(root).lstrip("/")
        if is_clutter(path) or (omitted and path.startswith(f"{omitted}/")):
            continue
        if is_utf8(path):
            sizes[path] = info.size
        else:
            not_utf8.append(to_printable(path))
    return Listing(_to_uri(uri, root), sizes, not_utf8)


def path_below(uri: str | Path, folder: str | Path) -> str | None:
    """Path of `folder` below the folder `uri`: "" where both are one, None where it is elsewhere. Local links are resolved."""
    places = (str(each) if str(each).startswith("s3://") else os.path.realpath(open_filesystem(each)[1]) for each in (uri, folder))
    root, path = (place.rstrip("/") + "/" for place in places)
    return path.removeprefix(root).rstrip("/") if path.startswith(root) else None


def list_files(uri: str | Path, suffix: str = "") -> list[str]:
    """URIs of the files of `list_folder(uri)` whose name ends with `suffix`."""
    found = list_folder(uri)
    return [found.uri_of(path) for path in found.sizes if path.endswith(suffix)]


def file_sizes(uri: str | Path) -> dict[str, int]:
    """Bytes of the files of `list_folder(uri)`, by URI."""
    found = list_folder(uri)
    return {found.uri_of(path): size for path, size in found.sizes.items()}


def delete(uri: str | Path) -> None:
    """Remove a file, or a folder with all that is in it. What does not exist is left so; a whole bucket or `/` is refused."""
    filesystem, path = open_filesystem(uri)
    if "/" not in path.strip("/"):
        raise StorageError(f"{uri}: refusing to delete a whole bucket or a top-level folder; name something inside it")
    with _explained("delete", uri):
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind != pafs.FileType.NotFound:
            filesystem.delete_file(path)


def upload_folder(local_dir: str | Path, uri: str | Path, leave_out: str | None = None) -> None:
    """Copy every file below `local_dir` but `leave_out` to the same place below `uri`, in parallel. Other files at `uri` stay.
    Raises StorageError.

    To S3, the parts of a large file go in parallel too, and one that fails for a passing reason is sent again.
    """
    if not Path(local_dir).is_dir():
        raise StorageError(f"{local_dir} is not a folder; nothing to upload to {uri}")
    if str(uri).startswith("s3://"):
        _upload_to_s3(Path(local_dir), str(uri), leave_out)
    else:
        _copy_folder(local_dir, uri, leave_out)


def download_folder(uri: str | Path, local_dir: str | Path) -> None:
    """Copy every file below `uri` to the same place below `local_dir`, in parallel. Raises StorageError, also for an empty `uri`."""
    if not _copy_folder(uri, local_dir):
        raise StorageError(f"{uri} has no files; check the path, and the endpoint if it is on S3")


def download_files(uri: str | Path, names: Iterable[str], local_dir: str | Path) -> None:
    """Copy the files of these names below the folder `uri` to the same places below `local_dir`, in parallel.
    Raises StorageError, also for a name that leads out of them, before anything is copied."""
    filesystem, path = open_filesystem(uri)
    names = list(names)
    for name in names:
        _check_below(name, uri)
    run_parallel(_copy_file, ((filesystem, f"{path}/{name}", pafs.LocalFileSystem(), str(Path(local_dir) / name)) for name in names))


def local_copy(uri: str | Path) -> Path:
    """A local path with the content of `uri`, a file or a folder: the path itself when it is local, else a cached download.

    The cache lies in the temporary folder of this user; a change at `uri` (names, sizes, times) makes a new copy. Processes of one node
    that ask at the same time wait for one download.
    """
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        if not os.path.exists(path):
            raise StorageError(f"{uri} does not exist (looked for {path})")
        return Path(path)
    with _explained("read", uri):
        info = filesystem.get_file_info(path)
    is_file = info.type == pafs.FileType.File
    infos = [info] if is_file else _file_infos(uri)
    if not infos:
        raise StorageError(f"{uri} does not exist or is empty; check the path and the store's endpoint")
    listing = repr([read_s3_settings().endpoint, path, [(item.path, item.size, item.mtime_ns) for item in infos]])
    folder = _cache_root() / hashlib.sha256(listing.encode()).hexdigest()[:32]
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".part")
            shutil.rmtree(partial, ignore_errors=True)  # a killed process leaves one
            try:
                if is_file:
                    _copy_file(filesystem, path, pafs.LocalFileSystem(), str(partial / Path(path).name))
                else:
                    download_folder(uri, partial)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            partial.rename(folder)
    return folder / Path(path).name if is_file else folder


def run_parallel(function: Callable[..., T], arguments: Iterable[tuple]) -> list[T]:
    """`function(*a)` for each `a`, on `NUM_COPY_THREADS` threads, results in order. The first error is raised and the rest not begun."""
    with ThreadPoolExecutor(NUM_COPY_THREADS) as pool:
        futures = [pool.submit(function, *each) for each in arguments]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _copy_folder(source: str | Path, target: str | Path, leave_out: str | None = None) -> int:
    source_filesystem, source_path = open_filesystem(source)
    target_filesystem, target_path = open_filesystem(target)
    names = [name for info in _file_infos(source) if (name := os.path.relpath(info.path, source_path)) != leave_out]
    run_parallel(_copy_file, ((source_filesystem, f"{source_path}/{name}", target_filesystem, f"{target_path}/{name}") for name in names))
    return len(names)


def _copy_file(source_filesystem: pafs.FileSystem, source_path: str, target_filesystem: pafs.FileSystem, target_path: str) -> None:
    on_s3 = isinstance(source_filesystem, pafs.S3FileSystem) or isinstance(target_filesystem, pafs.S3FileSystem)
    with _explained("copy", f"{source_path} to {target_path}", on_s3):
        if isinstance(target_filesystem, pafs.LocalFileSystem):
            Path(target_path).parent.mkdir(parents=True, exist_ok=True)
        with source_filesystem.open_input_stream(source_path) as source, target_filesystem.open_output_stream(target_path) as target:
            while chunk := source.read(COPY_CHUNK_BYTES):
                target.write(chunk)


def _upload_to_s3(folder: Path, uri: str, leave_out: str | None) -> None:
    from boto3.s3.transfer import TransferConfig, create_transfer_manager
    from botocore.exceptions import BotoCoreError, ClientError

    _, path = open_filesystem(uri)
    bucket, _, prefix = path.partition("/")
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    config = TransferConfig(multipart_threshold=UPLOAD_PART_BYTES, multipart_chunksize=UPLOAD_PART_BYTES, max_concurrency=NUM_COPY_THREADS)
    with _explained("write", uri):
        try:
            with create_transfer_manager(_boto3_client(), config) as manager:
                sent = [manager.upload(str(folder / name), bucket, f"{prefix}/{name}".lstrip("/")) for name in names if name != leave_out]
                for future in sent:
                    future.result()
        except (BotoCoreError, ClientError) as error:
            raise OSError(str(error)) from error


def _file_infos(uri: str | Path) -> list[FileInfo]:
    """All files below `uri`, sorted by path. Local folders are walked by `walk_files`: pyarrow fails on a name that is not UTF-8.

    A store that lists a name which leads elsewhere is not believed: what it holds is copied by such names. Raises StorageError.
    """
    filesystem, path = open_filesystem(uri)
    with _explained("list", uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            found = list(walk_files(path)) if os.path.isdir(path) else []
        else:
            infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
            found = [FileInfo(info.path, info.size, info.mtime_ns) for info in infos if info.type == pafs.FileType.File]
            for info in found:
                _check_below(info.path.removeprefix(f"{path}/") if info.path.startswith(f"{path}/") else f"/{info.path}", uri)
    return sorted(found, key=lambda info: info.path)


def _check_below(name: str, uri: str | Path) -> None:
    if {"", ".."} & set(name.split("/")):
        raise StorageError(f"{name!r} cannot be the name of a file below {uri}: it has '..' or an empty part; rename it, or leave it out")


def _s3_path(text: str) -> str:
    """`bucket/key` of an S3 URI. Raises StorageError that says how it is spelt."""
    path = _S3_SCHEME.sub("", text, count=1)
    right = "/".join(part for part in path.split("/") if part not in ("", "."))
    if not right:
        raise StorageError(f"{text!r} names no bucket; write s3://bucket/key")
    if ".." in path.split("/"):
        raise StorageError(f"{text!r}: a store knows no '..'; write the key in full, s3://bucket/key")
    if text.removesuffix("/") != f"s3://{right}":
        raise StorageError(f"{text!r} is not spelt s3://bucket/key with one slash between parts; write s3://{right}, or rename the "
                           "objects if their keys do have empty parts")
    return right


def _to_uri(like: str | Path, path: str) -> str:
    return f"s3://{path}" if str(like).startswith("s3://") else path


def _cache_root() -> Path:
    root = Path(tempfile.gettempdir()) / f"pixellm-cache-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise StorageError(f"{root} belongs to another user; remove it or set TMPDIR")
    return root


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock `file` among the processes and threads of this node. The system releases it when its holder dies."""
    with file.open("w") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(verb: str, uri: str | Path, on_s3: bool = False) -> Iterator[None]:
    """Turn the errors of pyarrow and of the system into a StorageError that names the URI and the next step."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise StorageError(f"cannot {verb} {uri}: it does not exist; check the path") from None
    except UnicodeEncodeError:
        raise StorageError(f"cannot {verb} {to_printable(str(uri))}: the name is not UTF-8; rename the file") from None
    except OSError as error:
        on_s3 = str(uri).startswith("s3://") or on_s3
        step = (f"check that the store at {read_s3_settings().endpoint or 'AWS'} runs and the credentials" if on_s3
                else "check the path and its permissions")
        raise (StorageUnavailableError if on_s3 else StorageError)(f"cannot {verb} {uri}: {error}; {step}") from error
