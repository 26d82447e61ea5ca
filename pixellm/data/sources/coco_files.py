"""Annotation files in COCO's form, put together photo by photo while each annotation stays the text that it is."""

from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from pixellm.data.sources.json_files import to_plain
from pixellm.data.sources.plan import PlanDraft
from pixellm.errors import RowError


class CocoCategory(msgspec.Struct):
    """One of `categories`; `synonyms` and `def` are LVIS's. Only the id and the name are needed: the others may hold anything."""

    id: int
    name: Annotated[str, msgspec.Meta(min_length=1)]
    supercategory: Any = None
    raw_synonyms: Any = msgspec.field(name="synonyms", default=None)
    raw_definition: Any = msgspec.field(name="def", default=None)

    @property
    def synonyms(self) -> list[str]:
        """Other names of the category."""
        return [each for each in self.raw_synonyms if isinstance(each, str) and each] if isinstance(self.raw_synonyms, list) else []

    @property
    def definition(self) -> str | None:
        """A sentence that says what it is."""
        return _text(self.raw_definition)


class CocoFile(msgspec.Struct):
    """The file for `read_json`. Images and annotations are decoded one by one, so that one that is wrong does not stop the others."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[CocoCategory]
    licenses: Any = None

    def license_names(self) -> dict[str, str]:
        """Name and address of each licence, by its id as text."""
        entries = [each for each in self.licenses if isinstance(each, dict)] if isinstance(self.licenses, list) else []
        return {str(each.get("id")): " ".join(filter(None, map(_text, (each.get("name"), each.get("url"))))) for each in entries}

    def odd_fields(self) -> list[str]:
        """Descriptions of fields that are not as the format says, and that no question needs."""
        odd = [] if self.licenses is None or isinstance(self.licenses, list) else [f"licenses is a {type(self.licenses).__name__}"]
        for field, values in (("synonyms", [each.raw_synonyms for each in self.categories]),
                              ("supercategory", [each.supercategory for each in self.categories]),
                              ("def", [each.raw_definition for each in self.categories])):
            num = sum(value is not None and not isinstance(value, list if field == "synonyms" else str) for value in values)
            odd += [f"{field} of {num} categories"] if num else []
        return odd


class CocoImage(msgspec.Struct):
    """One of `images`. Fields that no question needs may hold anything; their text and lists are taken where they are some."""

    id: int | str
    height: int
    width: int
    file_name: Any = None
    coco_url: Any = None
    flickr_url: Any = None
    license: Any = None
    neg_category_ids: Any = None
    not_exhaustive_category_ids: Any = None

    @property
    def names(self) -> dict[str, str | None]:
        """Names that the photo is looked up by."""
        return {"file_name": _text(self.file_name), "coco_url": _text(self.coco_url)}

    @property
    def url(self) -> str | None:
        """The address at which the photo was published."""
        return _text(self.coco_url) or _text(self.flickr_url)


class CocoPhoto(msgspec.Struct):
    """The payload of a record: an image with its annotations, as the file has them."""

    image: CocoImage
    raw_annotations: list[msgspec.Raw] = msgspec.field(name="annotations")

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """As plain values."""
        return [to_plain(raw) for raw in self.raw_annotations]


def read_payload(payload: bytes) -> CocoPhoto:
    """Decode what `draft_photos` wrote."""
    return msgspec.json.decode(payload, type=CocoPhoto, strict=False)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


_NULL = msgspec.Raw(b"null")


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: msgspec.Raw = _NULL
    bbox: msgspec.Raw = _NULL
    segmentation: msgspec.Raw = _NULL


@dataclass(frozen=True)
class Marked:
    """Facts of all annotations of a file: ids of the categories that one of them has, and the number that belong to no photo of it.

    `shared_boxes` (the `repr` of each) stand at several different masks: a value that an exporter puts everywhere, no box of a mask.
    """

    category_ids: frozenset[int]
    num_unplaced: int
    shared_boxes: frozenset[str]


def draft_photos(file: CocoFile, draft: PlanDraft) -> Marked:
    """Add one record per image, with the payload `{"image": …, "annotations": […]}`; takes the annotations out of `file`.

    An annotation of a known photo goes to the photo's record whatever else is wrong with it, so that its builder knows what it sets aside.
    Sets aside `image_invalid`, an annotation whose photo is not known (`annotation_invalid`, `unknown_image`), and what PlanDraft does.
    """
    images = list(_read_images(file.images, draft))
    annotations: dict[str, list[msgspec.Raw]] = {str(image.id): [] for image, _ in images}
    category_ids: set[int] = set()
    num_unplaced = 0
    mask_of_box: dict[int, int] = {}  # hashes of the texts: a million annotations take 0.1 GB
    shared_boxes: set[str] = set()
    for raw in file.annotations:
        try:
            annotation = msgspec.json.decode(raw, type=_Annotation, strict=False)
            image_id = str(annotation.image_id)
            if image_id not in annotations:
                raise RowError("unknown_image", f"image {image_id} is not in the file")
        except (msgspec.DecodeError, RowError) as error:
            reason = error if isinstance(error, RowError) else RowError("annotation_invalid", f"{error}: {_start(raw)}")
            draft.reject(_field(raw, "image_id"), reason, _field(raw, "id"))
            num_unplaced += 1
            continue
        annotations[image_id].append(raw)
        with suppress(RowError):
            category_ids.add(to_category_id(to_plain(annotation.category_id)))
        box, mask = bytes(annotation.bbox), hash(bytes(annotation.segmentation))
        if box != bytes(_NULL) and mask_of_box.setdefault(hash(box), mask) != mask:
            shared_boxes.add(repr(to_plain(annotation.bbox)))
    file.annotations = []
    if draft.photos:
        joined = _join_images_of_one_file([image for image, _ in images], annotations, draft)
        images = [(image, raw) for image, raw in images if str(image.id) not in joined]
    for image, raw in images:
        payload = b'{"image":%b,"annotations":[%b]}' % (raw, b",".join(annotations.pop(str(image.id), [])))
        draft.add(str(image.id), image.names, payload)
    if shared_boxes:
        draft.notes.append(f"{len(shared_boxes)} boxes stand at several different masks, such as {min(shared_boxes)}: not compared")
    return Marked(frozenset(category_ids), num_unplaced, frozenset(shared_boxes))


def _join_images_of_one_file(images: list[CocoImage], annotations: dict[str, list[msgspec.Raw]], draft: PlanDraft) -> set[str]:
    """Give the first of several images of one file the annotations of the others, which are set aside; ids of those.

    Where their sizes differ, the annotations are of other pixels: then PlanDraft sets the second aside, and the first is not complete.
    """
    firsts: dict[str, CocoImage] = {}
    joined: set[str] = set()
    for image in images:
        with suppress(RowError):
            uri = draft.photos.find(image.names) if draft.photos else ""
            first = firsts.setdefault(uri, image)
            if str(first.id) != str(image.id) and (first.height, first.width) == (image.height, image.width):
                known = {_content(raw) for raw in annotations[str(first.id)]}
                annotations[str(first.id)] += [raw for raw in annotations.pop(str(image.id), []) if _content(raw) not in known]
                joined.add(str(image.id))
                detail = f"images {first.id} and {image.id} are one file, {uri}; the first has the annotations of both"
                draft.reject(image.id, RowError("duplicate_photo", detail))
    return joined


def _content(raw: msgspec.Raw) -> str:
    entry = to_plain(raw)
    return repr([entry.get(key) for key in ("category_id", "segmentation", "bbox", "iscrowd")])


def without_shared_box(annotation: dict[str, Any], shared_boxes: Container[str]) -> dict[str, Any]:
    """`annotation` without a box, and the area beside it, that says nothing of its mask."""
    return annotation | {"bbox": None, "area": None} if repr(annotation.get("bbox")) in shared_boxes else annotation


def to_category_id(value: Any) -> int:
    """A `category_id` as the whole number that it stands for, also as text or 64.0. Raises RowError `annotation_invalid`."""
    try:
        return msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError as error:
        raise RowError("annotation_invalid", f"category_id: {error}, found {value!r}") from None


def to_category_ids(value: Any) -> frozenset[int] | None:
    """A list of ids, null being an empty one; None for what is not a list of ids."""
    try:
        return frozenset(map(to_category_id, value or ())) if value is None or isinstance(value, list) else None
    except RowError:
        return None


def to_flag(value: Any) -> bool:
    """`iscrowd` and its like: 0, 1, true or false, also as text or 1.0, and null for 0. Raises RowError `annotation_invalid`."""
    try:
        return value not in (None, "") and msgspec.convert(int(value) if isinstance(value, float) else value, bool, strict=False)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise RowError("annotation_invalid", f"iscrowd: {error}, found {value!r}") from None


def _read_images(raws: list[msgspec.Raw], draft: PlanDraft) -> Iterator[tuple[CocoImage, msgspec.Raw]]:
    for raw in raws:
        try:
            image = msgspec.json.decode(raw, type=CocoImage, strict=False)
        except msgspec.DecodeError as error:
            draft.reject(_field(raw, "id"), RowError("image_invalid", f"{error}: {_start(raw)}"))
            continue
        if image.height > 0 and image.width > 0:
            yield image, raw
        else:
            draft.reject(image.id, RowError("image_invalid", f"{image.height} x {image.width} pixels (h, w)"))


def _field(raw: msgspec.Raw, name: str) -> str:
    entry = to_plain(raw)
    return str(entry.get(name)) if isinstance(entry, dict) else "None"


def _start(raw: msgspec.Raw) -> str:
    return bytes(raw)[:120].decode(errors="replace")
