"""Finds the photo of an annotation file's image in a folder, whatever the file calls it, and never another photo of the same base name.

Annotation files name photos by paths of other machines. A photo is found where its path below the folder and the given path agree in every
part that both have: `train2017/1.jpg` is `1.jpg` of a flat folder, `1.jpg` is `train2017/1.jpg`, but `video2/1.jpg` is not `video1/1.jpg`.
"""

import functools
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from pixellm.errors import RowError, StorageError
from pixellm.storage import list_folder, read_bytes

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_COCO_PREFIX = re.compile(r"COCO_[a-z]+\d{4}_")
_LOCAL_FILES_URL = re.compile(r".*/local-files/\?d=")  # Label Studio's for files of its own machine
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)  # nothing that tools write differently but for the case
_NUM_SHOWN = 3


def is_photo(path: str) -> bool:
    """Tell whether the file's name is a photo's; what is in it is looked at later."""
    return path.strip().lower().endswith(PHOTO_SUFFIXES)


def photo_id(name: str) -> str:
    """What a file name or URL stands for: COCO's image id without zeros (`COCO_train2014_000000000030.jpg` is 30), else the stem."""
    stem = posixpath.splitext(posixpath.basename(_COCO_PREFIX.sub("", name)))[0]
    return str(int(stem)) if stem.isascii() and stem.isdigit() else stem


class PhotoFolder:
    """Photos below a folder URI, listed once. Names are looked up in the listing, so no name can lead out of the folder.

    LVIS v0.5 writes `COCO_val2014_000000544519.jpg` for what COCO 2017 ships as `000000544519.jpg`; LVIS v1 gives a `coco_url` only.
    `not_utf8`: photos that cannot be used because their names are not UTF-8.
    """

    def __init__(self, uri: str):
        self._listing = list_folder(uri)
        self.paths = [path for path in self._listing.sizes if is_photo(path)]
        self.not_utf8 = [path for path in self._listing.not_utf8 if is_photo(path)]
        self._index = _PathIndex({path: [path] for path in self.paths})
        self._ids: dict[str, str] = {}
        self._photos_by_id: dict[str, str] = {}
        if not self.paths:
            raise StorageError(f"{uri} has no photos ({', '.join(PHOTO_SUFFIXES)}); check the path")

    def __iter__(self) -> Iterator[str]:
        return map(self._listing.uri_of, self.paths)

    def size_bytes(self, uri: str) -> int:
        """Size of a photo that `find` or the iteration gave."""
        return self._listing.sizes[uri[len(self._listing.uri_of("")):]]

    def read(self, image: Mapping[str, Any]) -> bytes:
        """The encoded photo. Raises RowError `photo_missing`, `photo_ambiguous`; StorageError when it is there and cannot be read."""
        return read_bytes(self.find(image))

    def find(self, image: Mapping[str, Any]) -> str:
        """URI of the photo of an entry of `images`, by its `file_name`, else its `coco_url`.

        Raises RowError `photo_missing`, or `photo_ambiguous` where several photos fit equally well.
        """
        given = [_to_path(image.get(key) or "") for key in ("file_name", "coco_url")]
        prefixed = [posixpath.basename(name) for name in given if _COCO_PREFIX.search(name)]  # unique in COCO, whatever the folder
        names = list(dict.fromkeys(name for name in given + [_COCO_PREFIX.sub("", name) for name in prefixed] if name))
        ambiguous: RowError | None = None
        for name in names:
            found = self._index.find(name)
            if len(found) == 1:
                return self._listing.uri_of(found[0])
            ambiguous = ambiguous or (self._ambiguous(name, found) if found else None)
        if ambiguous:
            raise ambiguous
        if not names:
            raise RowError("photo_missing", "the image has no file_name and no coco_url")
        elsewhere = [path for name in names for path in self._index.of_base_name(name)][:_NUM_SHOWN]
        detail = f"no {', '.join(names)} below {self._listing.uri}"
        detail += f"; in another folder than the name says: {', '.join(elsewhere)}" if elsewhere else ""
        raise RowError("photo_missing", detail + (f"; not UTF-8 are {', '.join(self.not_utf8[:_NUM_SHOWN])}" if self.not_utf8 else ""))

    def path_of_stem(self, stem: str) -> str | None:
        """Path below the folder of the photo that a file with the path `stem` (without its suffix) belongs to, None where there is none.

        Raises RowError `photo_ambiguous`.
        """
        found = self._stem_index.find(stem)
        if len(found) > 1:
            raise self._ambiguous(stem, found)
        return found[0] if found else None

    def id_of(self, image: Mapping[str, Any]) -> str:
        """An id for an entry that has none: `photo_id`, or where another photo has it the photo's own path. A photo has one id."""
        name = image.get("file_name") or image.get("coco_url") or ""
        try:
            photo = self.find(image)
        except RowError:  # the entry is set aside when it is added to the plan
            photo = name
        if photo not in self._ids:
            image_id = photo_id(_to_path(name))
            if image_id in self._photos_by_id:
                image_id = photo.removeprefix(self._listing.uri_of(""))
            self._ids[photo], self._photos_by_id[image_id] = image_id, photo
        return self._ids[photo]

    @functools.cached_property
    def _stem_index(self) -> "_PathIndex":
        by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            by_stem[path_stem(path)].append(path)
        return _PathIndex(by_stem)

    def _ambiguous(self, name: str, paths: list[str]) -> RowError:
        shown = ", ".join(paths[:_NUM_SHOWN])
        return RowError("photo_ambiguous", f"{name} can be each of {len(paths)} photos below {self._listing.uri}: {shown}")


class _PathIndex:
    """Photos by a path of theirs. A path may be written in another way: the forms of `_forms`, from the strictest on."""

    def __init__(self, photos: Mapping[str, list[str]]):
        self._photos = photos
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_base_name: dict[str, list[str]] = defaultdict(list)
        for path in photos:
            loose = _forms(path)[-1]
            self._by_path[loose].append(path)
            if "/" in loose:
                self._by_base_name[posixpath.basename(loose)].append(path)

    def find(self, name: str) -> list[str]:
        """The photos that fit `name` best: those that agree in the most parts, then in the strictest form, then in their depth."""
        if name in self._photos:
            return self._photos[name]
        name_forms = _forms(name)
        parts = name_forms[-1].split("/")
        shorter = [path for start in range(len(parts)) for path in self._by_path.get("/".join(parts[start:]), ())]
        deeper = [path for path in self._by_base_name.get(parts[-1], ()) if _forms(path)[-1].endswith(f"/{name_forms[-1]}")]
        fits = {path: _fit(name_forms, _forms(path)) for path in (*shorter, *deeper)}
        best = max(fits.values(), default=None)
        return [photo for path, fit in fits.items() if fit == best for photo in self._photos[path]]

    def of_base_name(self, name: str) -> list[str]:
        """The photos in folders that are called like `name` but for their folder."""
        return [photo for path in self._by_base_name.get(posixpath.basename(_forms(name)[-1]), ()) for photo in self._photos[path]]


def path_stem(path: str) -> str:
    """`path` without its suffix."""
    return posixpath.splitext(path)[0]


def _to_path(name: str) -> str:
    """A path out of a path or URL of any machine; of a URL without host and query."""
    name = _LOCAL_FILES_URL.sub("", name)
    if "://" in name:
        with suppress(ValueError):
            name = urlsplit(name).path
    return _cleaned(name)


def _cleaned(path: str) -> str:
    """Without `.` and empty parts; `..` takes the part before it away."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _forms(path: str) -> list[str]:
    """`path` as it is, then one after the other without what tools write differently: separators of Windows, percent encoding, composed and
    decomposed letters (NFC, NFD), spaces at the ends, case."""
    if _PLAIN.fullmatch(path):
        return [path] * 5 + [path.casefold()]
    forms = [path]
    for change in (lambda text: _cleaned(text.replace("\\", "/")), lambda text: _cleaned(unquote(text)),
                   lambda text: unicodedata.normalize("NFC", text), lambda text: "/".join(part.strip() for part in text.split("/")),
                   str.casefold):
        forms.append(change(forms[-1]))
    return forms


def _fit(name_forms: Iterable[str], path_forms: Iterable[str]) -> tuple[int, int, bool]:
    """Rank of a path that fits in its last form: parts in which both agree, the strictest form (negative), whether of equal depth."""
    for level, (name, path) in enumerate(zip(name_forms, path_forms, strict=True)):
        one, other = name.split("/"), path.split("/")
        num_shared = min(len(one), len(other))
        if one[-num_shared:] == other[-num_shared:]:
            return num_shared, -level, len(one) == len(other)
    return 0, 0, False
