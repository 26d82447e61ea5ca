"""Curated questions as entries of a MUSE file, and as rows by way of that file's own reader: both hold the same by construction."""

from collections.abc import Iterator

import msgspec

from pixellm.curation.pipelines import Curation, list_instances, provenance
from pixellm.data.schema import Region, RejectedRow, Row, region_rle
from pixellm.data.sources.muse import MuseAnnotation, MuseBuilder, MuseEntry
from pixellm.data.sources.photos import photo_id
from pixellm.data.sources.plan import PhotoRecord
from pixellm.photo_headers import read_header


class CuratedEntry(MuseEntry):
    """A MUSE entry that says for each question where it comes from; readers of MUSE pass over it."""

    provenance: list[dict[str, str]] = msgspec.field(default_factory=list)


def to_entry(row: Row, curation: Curation) -> CuratedEntry:
    """The questions of a photo, at least one. `ann_list` has all its instances, also those that no question is about."""
    regions, questions = row["regions"], [proposal for proposal, _ in curation.accepted]
    url = row["url"] or ""
    known = photo_id(url) == row["image_id"]
    return CuratedEntry(
        coco_url=url if known else None, file_name=None if known else _file_name(row), height=row["height"], width=row["width"],
        questions=[each.question for each in questions], text_answers=[each.answer for each in questions],
        answers=[[_annotation(regions[target.id], target.description) for target in each.targets] for each in questions],
        ann_list=[_annotation(regions[index]) for index in list_instances(row, len(regions))],
        provenance=[provenance(completion) for _, completion in curation.accepted])


def to_rows(entry: CuratedEntry, row: Row, source: str, split: str) -> Iterator[Row | RejectedRow]:
    """What the MUSE reader makes of `entry` and the photo of `row`, under our name for the source. Raises what it does."""
    record = PhotoRecord(row["image_id"], None, msgspec.json.encode([entry]), 0)
    for built in MuseBuilder(split).build(record, row["image"]):
        if not isinstance(built, RejectedRow):
            built = Row(**{**built, "source": source, "license": row["license"], "url": row["url"]})  # type: ignore[typeddict-item]
        yield built


def _annotation(region: Region, description: str | None = None) -> MuseAnnotation:
    return MuseAnnotation(segmentation=dict(region_rle(region)), category_name=region["category"], rephrased_name=description,
                          bbox=[float(side) for side in region["box_xywh"]])


def _file_name(row: Row) -> str:
    """As COCO calls the photo where its id is a number."""
    suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[read_header(row["image"]).format]
    image_id = row["image_id"]
    return f"{int(image_id):012d}.{suffix}" if image_id.isascii() and image_id.isdigit() else f"{image_id}.{suffix}"
