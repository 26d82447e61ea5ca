"""What datasets of parts in COCO's form have in common: categories such as `dog:leg`, and a mask per part (and per whole object)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pixellm.data.schema import Region, RejectedRow, Row
from pixellm.data.sources.agreement import AnnotationForm
from pixellm.data.sources.coco_files import (
    CocoFile,
    draft_photos,
    read_payload,
    to_category_id,
    to_category_ids,
    to_flag,
    without_shared_box,
)
from pixellm.data.sources.frame import PhotoFrame
from pixellm.data.sources.json_files import read_json
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, SourcePlan
from pixellm.data.sources.semantic import SemanticSource, build_semantic
from pixellm.errors import RowError


class PartMasksSource(SemanticSource, AnnotationForm):
    """Base of both sources of parts."""


@dataclass(frozen=True)
class PartName:
    """`name` is asked for ("dog leg"); answers mostly say the `description` of a part ("leg of the dog"), which a whole has not."""

    name: str
    description: str | None = None


@dataclass(frozen=True)
class PartMasksBuilder:
    """One region per annotation. Classes of which the photo has more than is marked, or of which one is set aside, are not asked for."""

    source: PartMasksSource
    names: Mapping[int, PartName]
    shared_boxes: frozenset[str] = frozenset()

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. Raises RowError of PhotoFrame and `build_semantic`, and `no_usable_annotation`."""
        content = read_payload(record.payload)
        image = content.image
        frame = PhotoFrame(photo, (image.height, image.width), self.source)
        incomplete = to_category_ids(image.not_exhaustive_category_ids)
        withheld = {part.name for number, part in self.names.items() if incomplete is None or number in incomplete}
        regions: list[Region] = []
        has_unknown = False
        annotations = content.annotations
        for annotation in annotations:
            part = None
            try:
                ignore = to_flag(annotation.get("iscrowd"))
                category_id = to_category_id(annotation.get("category_id"))
                part = self.names.get(category_id)
                if part is None:
                    raise RowError("unknown_category", f"category {category_id} is not among the {len(self.names)} of the file")
                regions.append(frame.region(without_shared_box(annotation, self.shared_boxes), part.name, part.description, ignore))
            except RowError as error:
                withheld |= {part.name} if part else set()
                has_unknown |= part is None
                yield RejectedRow(record.image_id, self.source.dataset, error.reason, error.detail, str(annotation.get("id")))
        if annotations and not regions:
            raise RowError("no_usable_annotation", f"all of its {len(annotations)} annotations were set aside")
        if has_unknown:
            raise RowError("nothing_to_ask", "an annotation without a known category was set aside: no class is known to be complete")
        conversations = build_semantic(regions, self.source, record.image_id, withheld)
        height, width = frame.size_hw
        yield Row(image_id=record.image_id, source=self.source.dataset, split=self.source.split, image=photo, height=height, width=width,
                  regions=regions, conversations=conversations, license=None, url=image.url)


def plan_part_masks(source: PartMasksSource, photos_uri: str, annotations_uri: str) -> SourcePlan:
    """One record per image of the file."""
    draft = PlanDraft(source.dataset, source.split, PhotoFolder(photos_uri))
    file, sha256 = read_json(annotations_uri, CocoFile)
    names = {category.id: to_part_name(category.name) for category in file.categories}
    marked = draft_photos(file, draft)
    return draft.finish(PartMasksBuilder(source, names, marked.shared_boxes), f"sha256:{sha256}")


def to_part_name(category: str) -> PartName:
    """`car_(automobile):door_handle` to "car door handle" and "door handle of the car", `trash_can` to "trash can"."""
    thing, _, part = re.sub(r"_?\([^)]*\)", "", category).replace("_", " ").partition(":")
    return PartName(f"{thing} {part}", f"{part} of the {thing}") if part else PartName(thing)
