"""What COCO and LVIS have in common: an instances file, a folder of photos, and one row per photo. Bad input is yielded as RejectedRow."""

import hashlib
import json
import random
import re
from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from pixellm.data.schema import PhotoInfo, Region, RejectedRow, Row, build_region, read_photo_info
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.referring import Category, ReferringOptions, build_referring
from pixellm.errors import ConfigError, RowError, StorageError
from pixellm.masks import RLE, mask_to_rle, rle_to_mask, segmentation_to_rle
from pixellm.storage import read_bytes

NUM_READ_AHEAD = 16  # photos in flight: hides the latency of an object store
MAX_ABSENT_PER_PHOTO = 32


class InstancesSource(ReferringOptions):
    """`input` is the folder of photos, `annotations` the instances file; both are URIs. `split` defaults to that in the file's name."""

    input: str
    annotations: str
    split: str | None = None
    seed: int = 0

    @property
    @abstractmethod
    def source_name(self) -> str:
        """The `source` column of the rows."""

    @abstractmethod
    def build_categories(self, entries: list[dict[str, Any]]) -> dict[int, Category]:
        """Categories by their id, from the `categories` of the file."""

    @abstractmethod
    def may_be_absent(self, image: Mapping[str, Any]) -> set[int]:
        """Category ids that are absent from the photo unless an annotation names them."""

    @abstractmethod
    def not_exhaustive(self, image: Mapping[str, Any]) -> set[int]:
        """Category ids of which the photo has more than is marked: nobody may ask for "every …" of them."""

    def num_rows(self) -> int:
        """Photos in the annotation file."""
        return len(self._file.images)

    def version(self) -> str:
        """Checksum of the annotation file."""
        return f"sha256:{self._file.sha256}"

    def read_rows(self) -> Iterator[Row | RejectedRow]:
        """One Row or one RejectedRow per photo, in the file's order; before it a RejectedRow per annotation that was set aside.

        Raises ConfigError for a file that is no instances file, StorageError when the file or the folder cannot be read at all.
        """
        categories = self.build_categories(self._file.categories)
        folder = PhotoFolder(self.input)
        images = [image for image in self._file.images if _is_image(image)]
        for image in self._file.images:
            if not _is_image(image):
                yield RejectedRow(_id_of(image), self.source_name, "image_invalid", f"no id, height and width in {str(image)[:120]}")
        known = {image["id"] for image in images}
        by_image: dict[int | str, list[dict]] = defaultdict(list)
        for annotation in self._file.annotations:
            try:
                by_image[_image_id_of(annotation, known)].append(annotation)
            except RowError as error:
                yield self._set_aside(annotation.get("image_id") if isinstance(annotation, dict) else None, annotation, error)
        for image, photo in _read_ahead(folder, images):
            try:
                yield from self._read_photo(image, photo.result(), by_image.pop(image["id"], []), categories)
            except RowError as error:
                yield RejectedRow(str(image["id"]), self.source_name, error.reason, error.detail)
            except StorageError as error:
                yield RejectedRow(str(image["id"]), self.source_name, "photo_unreadable", str(error))

    @cached_property
    def _file(self) -> "_InstancesFile":
        return _load_instances(self.annotations)

    @cached_property
    def _split(self) -> str:
        if self.split:
            return self.split
        found = re.search(r"train|val|test", self.annotations.rstrip("/").rpartition("/")[2])
        if not found:
            raise ConfigError(f"the name of annotations={self.annotations} says no split; give split=train or split=val")
        return found.group()

    @cached_property
    def _licenses(self) -> dict[Any, str]:
        return {entry.get("id"): " ".join(filter(None, (entry.get("name"), entry.get("url")))) for entry in self._file.licenses}

    def _read_photo(
        self, image: Mapping[str, Any], data: bytes, annotations: list[dict], categories: Mapping[int, Category]
    ) -> Iterator[Row | RejectedRow]:
        photo = read_photo_info(data)
        turn = _needs_turn(image, photo)
        regions: list[Region] = []
        by_category: dict[int, list[int]] = defaultdict(list)
        annotated: set[int] = set()
        incomplete = self.not_exhaustive(image)
        num_set_aside = 0
        for annotation in annotations:
            try:
                category = _category_of(annotation, categories)
                rle = segmentation_to_rle(annotation.get("segmentation"), (image["height"], image["width"]))
                ignore = bool(annotation.get("iscrowd", 0))
                region = build_region(_to_upright(rle, photo.orientation) if turn else rle, category.name, ignore=ignore)
            except RowError as error:
                num_set_aside += 1
                incomplete.add(annotation["category_id"])
                yield self._set_aside(image["id"], annotation, error)
                continue
            annotated.add(annotation["category_id"])
            if not ignore:
                by_category[annotation["category_id"]].append(len(regions))
            regions.append(region)
        if num_set_aside and not regions:
            raise RowError("no_usable_annotation", f"all of its {num_set_aside} annotations were set aside")
        rng = random.Random(repr((self.seed, self.source_name, image["id"])))
        absent_ids = sorted((self.may_be_absent(image) & categories.keys()) - annotated - incomplete)
        conversations = build_referring(
            regions,
            {categories[each]: by_category[each] for each in sorted(by_category.keys() - incomplete)},
            [categories[each] for each in rng.sample(absent_ids, min(MAX_ABSENT_PER_PHOTO, len(absent_ids)))],
            self, rng,
        )
        if not conversations:
            raise RowError("nothing_to_ask", "no category is marked exhaustively, and none is known to be absent")
        height, width = photo.size_hw
        yield Row(image_id=str(image["id"]), source=self.source_name, split=self._split, image=data, height=height, width=width,
                  regions=regions, conversations=conversations, license=self._licenses.get(image.get("license")),
                  url=image.get("coco_url") or image.get("flickr_url"))

    def _set_aside(self, image_id: Any, annotation: Any, error: RowError) -> RejectedRow:
        return RejectedRow(str(image_id), self.source_name, error.reason, error.detail, annotation_id=_id_of(annotation))


@dataclass(frozen=True)
class _InstancesFile:
    images: list[Any]
    annotations: list[Any]
    categories: list[dict[str, Any]]
    licenses: list[dict[str, Any]]
    sha256: str


def _load_instances(uri: str) -> _InstancesFile:
    data = read_bytes(uri)
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ConfigError(f"annotations={uri} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"annotations={uri} holds a {type(content).__name__}, an instances file is an object")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise ConfigError(f"annotations={uri} is no instances file: it has no list {', '.join(missing)}")
    if not all(isinstance(entry, dict) and isinstance(entry.get("id"), int) and entry.get("name") for entry in content["categories"]):
        raise ConfigError(f"annotations={uri}: each of its categories needs an integer id and a name")
    return _InstancesFile(content["images"], content["annotations"], content["categories"], content.get("licenses") or [],
                          hashlib.sha256(data).hexdigest())


def _read_ahead(folder: PhotoFolder, images: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], "Future[bytes]"]]:
    with ThreadPoolExecutor(NUM_READ_AHEAD) as pool:
        upcoming = iter(images)
        pending = deque((image, pool.submit(folder.read, image)) for image in islice(upcoming, NUM_READ_AHEAD))
        while pending:
            yield pending.popleft()
            pending.extend((image, pool.submit(folder.read, image)) for image in islice(upcoming, 1))


def _is_image(image: Any) -> bool:
    return (isinstance(image, dict) and isinstance(image.get("id"), int | str)
            and all(isinstance(image.get(side), int) and image[side] > 0 for side in ("height", "width")))


def _id_of(entry: Any) -> str:
    return str(entry.get("id")) if isinstance(entry, dict) else "None"


def _image_id_of(annotation: Any, known: set[int | str]) -> int | str:
    fields = annotation if isinstance(annotation, dict) else {}
    if not isinstance(fields.get("image_id"), int | str) or not isinstance(fields.get("category_id"), int):
        raise RowError("annotation_invalid", f"no image_id and category_id in {str(annotation)[:120]}")
    if annotation["image_id"] not in known:
        raise RowError("unknown_image", f"image {annotation['image_id']} is not in the file")
    return annotation["image_id"]


def _category_of(annotation: Mapping[str, Any], categories: Mapping[int, Category]) -> Category:
    category = categories.get(annotation["category_id"])
    if category is None:
        raise RowError("unknown_category", f"category {annotation['category_id']} is not among the {len(categories)} of the file")
    return category


def _needs_turn(image: Mapping[str, Any], photo: PhotoInfo) -> bool:
    """Whether the annotations are on the stored pixels of a photo that is shown turned. Raises RowError `size_mismatch`."""
    annotated_hw = (image["height"], image["width"])
    if annotated_hw == photo.size_hw:
        return False
    if annotated_hw == photo.stored_hw:
        return True
    raise RowError("size_mismatch", f"the photo is {photo.size_hw} (h, w), its annotations are for {annotated_hw}")


def _to_upright(rle: RLE, orientation: int) -> RLE:
    """A mask on the stored pixels to one on the upright photo, for the EXIF orientations 5 to 8 that swap the sides."""
    mask = rle_to_mask(rle)
    upright = {5: mask.T, 6: np.rot90(mask, -1), 7: mask.T[::-1, ::-1], 8: np.rot90(mask)}[orientation]
    return mask_to_rle(upright)
