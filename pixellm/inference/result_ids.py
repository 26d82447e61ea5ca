"""Image ids for COCO results: those of the annotation file that belongs to the photos, else what the names of the files say for sure.

A number in a name is an id only where it is COCO's own, of twelve digits; else the path stands in its place, which no tool takes for
another photo.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import msgspec

from pixellm.data.sources.json_files import read_json
from pixellm.data.sources.photos import PhotoFolder
from pixellm.errors import ConfigError, RowError
from pixellm.storage import join_uri

COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})", re.ASCII)
MAX_NAMED = 3

ImageId = int | str


@dataclass(frozen=True)
class ResultIds:
    """The ids of each photo (path below the folder): one as a rule, several where the annotation file has it several times, or none.

    `notes` say how they were found and what was odd, for people.
    """

    of_photo: dict[str, list[ImageId]]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As it is written beside the results."""
        return {"notes": self.notes, "image_ids": self.of_photo}


class _Images(msgspec.Struct):
    images: list[msgspec.Raw]


def ids_from_names(photos: Sequence[str]) -> ResultIds:
    """The number of a name like COCO's (`000000544519.jpg`, `COCO_val2014_000000544519.jpg`) that no other photo has, else the path."""
    numbers = {photo: int(match[1]) for photo in photos if (match := COCO_NAME.fullmatch(PurePosixPath(photo).stem))}
    counts = Counter(numbers.values())
    twice = [photo for photo in numbers if counts[numbers[photo]] > 1]
    of_photo: dict[str, list[ImageId]] = {
        photo: [numbers[photo] if photo in numbers and counts[numbers[photo]] == 1 else photo] for photo in photos}
    num_paths = sum(isinstance(ids[0], str) for ids in of_photo.values())
    notes = [f"image ids: COCO's numbers of twelve digits for {len(photos) - num_paths} photos, the path for {num_paths}"]
    if twice:
        notes.append(f"photos that share their number with another and have their path: {len(twice)} ({_some(twice)})")
    if num_paths:
        notes.append("for the ids of an annotation file give annotations=FILE")
    return ResultIds(of_photo, notes)


def ids_from_annotations(annotations: str, photos_uri: str, photos: Sequence[str]) -> ResultIds:
    """The ids that the file at the URI `annotations` (COCO's form) gives the photos by their file names; a photo that it lacks has none.

    Raises ConfigError for a file of another form or without any of the photos, StorageError where it cannot be read.
    """
    file, _ = read_json(annotations, _Images)
    folder = PhotoFolder(photos_uri)
    path_of = {join_uri(photos_uri, photo): photo for photo in photos}
    of_photo: dict[str, list[ImageId]] = {photo: [] for photo in photos}
    odd: list[str] = []
    for raw in file.images:
        image = msgspec.json.decode(raw)
        if not isinstance(image, dict) or (image_id := _to_id(image.get("id"))) is None:
            odd.append(f"an image without an id: {bytes(raw)[:60].decode(errors='replace')}")
            continue
        try:
            of_photo[path_of[folder.find(image)]].append(image_id)
        except RowError as error:
            if error.reason != "photo_missing":  # a file may describe more photos than were asked about
                odd.append(str(error))
    without = [photo for photo in photos if not of_photo[photo]]
    if len(without) == len(photos):
        raise ConfigError(f"{annotations} has none of the {len(photos)} photos of {photos_uri} by name (such as {photos[0]}); give the "
                          "file that belongs to them, or leave annotations out")
    notes = [f"image ids: those of {annotations} for {len(photos) - len(without)} of {len(photos)} photos"]
    several = [photo for photo in photos if len(of_photo[photo]) > 1]
    notes += [f"{said}: {len(found)} ({_some(found)})" for said, found in (
        ("photos that it lacks, whose masks are in results_without_id.json", without),
        ("photos with several ids, whose masks are listed for each", several), ("images of the file that are left out", odd)) if found]
    return ResultIds(of_photo, notes)


def _to_id(value: object) -> ImageId | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
