"""Files of local folders as they are found on people's disks: links in circles, names of any bytes, clutter. Knows no object store."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

# What file managers, archivers and network drives put beside people's files, in lower case; so are names that begin with a dot.
CLUTTER = frozenset({"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
                     "ehthumbs.db", "desktop.ini", "icon\r"})


@dataclass(frozen=True)
class FileInfo:
    """`path` is that inside the filesystem, with surrogates for the bytes of a local name that is not UTF-8."""

    path: str
    size: int
    mtime_ns: int | None


def walk_files(folder: str, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[FileInfo]:
    """All files below `folder`. Links are followed, but not back into a folder of `above` (device, inode); dead ones are left out.

    Raises OSError for a folder that cannot be read.
    """
    here = os.stat(folder)
    above |= {(here.st_dev, here.st_ino)}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
            except OSError:  # a link to nothing or to itself, or a file that another process has just removed
                continue
            if stat.S_ISREG(status.st_mode):
                yield FileInfo(entry.path, status.st_size, status.st_mtime_ns)
            elif stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in above:
                yield from walk_files(entry.path, above)


def is_clutter(path: str) -> bool:
    """Tell whether a file, or a folder that it is in, is hidden or one of `CLUTTER`."""
    return any(part.startswith(".") or part.lower() in CLUTTER for part in path.split("/"))


def is_utf8(path: str) -> bool:
    """Tell whether the name is text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_printable(path: str) -> str:
    r"""A path that is not UTF-8 as text, each odd byte as `\xNN`."""
    return os.fsencode(path).decode(errors="backslashreplace")
