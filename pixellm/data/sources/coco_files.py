"""Annotation files in COCO's form, put together photo by photo while each annotation stays the text that it is."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from pixellm.data.sources.plan import PlanDraft
from pixellm.errors import RowError


class CocoCategory(msgspec.Struct):
    """One of `categories`; `synonyms` and `definition` are LVIS's."""

    id: int
    name: Annotated[str, msgspec.Meta(min_length=1)]
    synonyms: list[str] = []
    definition: str | None = msgspec.field(name="def", default=None)


class CocoFile(msgspec.Struct):
    """The file for `read_json`. Images and annotations are decoded one by one, so that one that is wrong does not stop the others."""

    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[CocoCategory]
    licenses: list[dict[str, Any]] | None = None

    def license_names(self) -> dict[Any, str]:
        """Name and address of each licence, by its id."""
        return {each.get("id"): " ".join(filter(None, (each.get("name"), each.get("url")))) for each in self.licenses or []}


class _Image(msgspec.Struct):
    id: int | str
    height: int
    width: int
    file_name: str | None = None
    coco_url: str | None = None


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int


def draft_photos(file: CocoFile, draft: PlanDraft) -> None:
    """Adds one record per image, with the payload `{"image": …, "annotations": […]}`; takes the annotations out of `file`.

    Sets aside `image_invalid`, `annotation_invalid`, `unknown_image`, and what PlanDraft does.
    """
    images = list(_read_images(file.images, draft))
    annotations: dict[int | str, list[msgspec.Raw]] = {image.id: [] for image, _ in images}
    for raw in file.annotations:
        try:
            image_id = msgspec.json.decode(raw, type=_Annotation).image_id
        except msgspec.ValidationError as error:
            draft.reject(_field(raw, "image_id"), RowError("annotation_invalid", f"{error}: {_start(raw)}"), _field(raw, "id"))
            continue
        if image_id in annotations:
            annotations[image_id].append(raw)
        else:
            draft.reject(image_id, RowError("unknown_image", f"image {image_id} is not in the file"), _field(raw, "id"))
    file.annotations = []
    for image, raw in images:
        payload = b'{"image":%b,"annotations":[%b]}' % (raw, b",".join(annotations.pop(image.id, [])))
        draft.add(str(image.id), {"file_name": image.file_name, "coco_url": image.coco_url}, payload)


def _read_images(raws: list[msgspec.Raw], draft: PlanDraft) -> Iterator[tuple[_Image, msgspec.Raw]]:
    for raw in raws:
        try:
            image = msgspec.json.decode(raw, type=_Image)
        except msgspec.ValidationError as error:
            draft.reject(_field(raw, "id"), RowError("image_invalid", f"{error}: {_start(raw)}"))
            continue
        if image.height > 0 and image.width > 0:
            yield image, raw
        else:
            draft.reject(image.id, RowError("image_invalid", f"{image.height} x {image.width} pixels (h, w)"))


def _field(raw: msgspec.Raw, name: str) -> str:
    entry = msgspec.json.decode(raw)
    return str(entry.get(name)) if isinstance(entry, dict) else "None"


def _start(raw: msgspec.Raw) -> str:
    return bytes(raw)[:120].decode(errors="replace")
