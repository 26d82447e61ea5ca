"""Finds the photo of an annotation file's image in a folder, whatever the file calls it."""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from pixellm.errors import RowError, StorageError
from pixellm.storage import file_sizes, read_bytes

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_COCO_PREFIX = re.compile(r"COCO_[a-z]+\d{4}_")


def photo_id(name: str) -> str:
    """What a file name or URL stands for: COCO's image id without zeros (`COCO_train2014_000000000030.jpg` is 30), else the stem."""
    stem = posixpath.splitext(posixpath.basename(_COCO_PREFIX.sub("", name)))[0]
    return str(int(stem)) if stem.isascii() and stem.isdigit() else stem


class PhotoFolder:
    """Photos below a folder URI, listed once. Names are looked up in the listing, so no name can lead out of the folder.

    LVIS v0.5 writes `COCO_val2014_000000544519.jpg` for what COCO 2017 ships as `000000544519.jpg`; LVIS v1 gives a `coco_url` only.
    """

    def __init__(self, uri: str):
        self._uri = uri
        self._sizes = {photo: size for photo, size in file_sizes(uri).items() if photo.lower().endswith(PHOTO_SUFFIXES)}
        self._by_basename: dict[str, list[str]] = defaultdict(list)
        for photo in self._sizes:
            self._by_basename[posixpath.basename(photo)].append(photo)
        if not self._sizes:
            raise StorageError(f"{uri} has no photos ({', '.join(PHOTO_SUFFIXES)}); check the path")

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def size_bytes(self, uri: str) -> int:
        """Size of a photo that `find` or the iteration gave."""
        return self._sizes[uri]

    def read(self, image: Mapping[str, Any]) -> bytes:
        """The encoded photo. Raises RowError `photo_missing`, `photo_ambiguous`; StorageError when it is there and cannot be read."""
        return read_bytes(self.find(image))

    def find(self, image: Mapping[str, Any]) -> str:
        """URI of the photo of an entry of `images`. Raises RowError `photo_missing` or `photo_ambiguous`."""
        names = [name for name in (image.get("file_name"), urlsplit(image.get("coco_url") or "").path) if name]
        names += [_COCO_PREFIX.sub("", name) for name in names]
        for name in names:
            found = self._by_basename.get(posixpath.basename(name), [])
            if len(found) > 1:  # train2017/ and val2017/ side by side: the folder in the name decides
                tail = "/".join(name.split("/")[-2:])
                found = [photo for photo in found if photo.endswith(f"/{tail}")] or found
            if len(found) > 1:
                raise RowError("photo_ambiguous", f"{name} is in {len(found)} folders below {self._uri}: {', '.join(found[:3])}")
            if found:
                return found[0]
        tried = ", ".join(dict.fromkeys(map(posixpath.basename, names)))
        raise RowError("photo_missing", f"no {tried} below {self._uri}" if tried else "the image has no file_name and no coco_url")
