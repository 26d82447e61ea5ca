"""The row format: one photo with its regions and all questions about it. What a row must fulfil is checked here, before it is written.

`targets[i]` of a conversation lists the regions whose union is the mask of the i-th `{seg}` of its answer;
each `{seg}` stands right after the phrase that it belongs to: "The red circle {seg} and the blue ring {seg} can roll.", or all of them
after all phrases, in the same order: "The red circle and the blue ring: {seg} and {seg}."
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa

from pixellm.errors import InputError, RowError
from pixellm.masks import RLE, check_rle, rle_area, rle_box_xywh
from pixellm.photos import decode_photo, open_photo

SEG = "{seg}"
TASKS = ("semantic", "referring", "reasoning", "vqa")
# Recorded and counted, but outside the share that stops a job.
SKIP_REASONS = frozenset({"nothing_to_ask", "name_not_utf8", "duplicate_photo"})
DRAWN_TASKS = ("semantic", "referring")  # whose questions can be drawn from category names alone

REGION_TYPE = pa.struct([
    pa.field("rle_size", pa.list_(pa.int32()), nullable=False),
    pa.field("rle_counts", pa.string(), nullable=False),
    pa.field("category", pa.string(), nullable=False),
    pa.field("description", pa.string()),
    pa.field("box_xywh", pa.list_(pa.int32()), nullable=False),
    pa.field("area", pa.int64(), nullable=False),
    pa.field("ignore", pa.bool_(), nullable=False),
])
CONVERSATION_TYPE = pa.struct([
    pa.field("question", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("targets", pa.list_(pa.list_(pa.int32())), nullable=False),
    pa.field("task", pa.string(), nullable=False),
])
ROW_SCHEMA = pa.schema([
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("regions", pa.list_(REGION_TYPE), nullable=False),
    pa.field("conversations", pa.list_(CONVERSATION_TYPE), nullable=False),
    pa.field("license", pa.string()),
    pa.field("url", pa.string()),
])


class Region(TypedDict):
    """One thing in a photo. `rle_size` is [h, w] of the upright photo, `area` in pixels; `ignore` keeps its pixels out of the loss."""

    rle_size: list[int]
    rle_counts: str
    category: str
    description: str | None
    box_xywh: list[int]
    area: int
    ignore: bool


class Conversation(TypedDict):
    """A question and its answer. Where one of them is None it is drawn from the templates of `task` each time the row is streamed."""

    question: str | None
    answer: str | None
    targets: list[list[int]]
    task: str


class Row(TypedDict):
    """One photo. `image` is the encoded file as shipped; `height` and `width` are those after EXIF orientation."""

    image_id: str
    source: str
    split: str
    image: bytes
    height: int
    width: int
    regions: list[Region]
    conversations: list[Conversation]
    license: str | None
    url: str | None


@dataclass(frozen=True)
class RejectedRow:
    """What was set aside, and why: a whole photo, or one annotation of it when `annotation_id` is given. `reason` is a stable slug."""

    image_id: str
    source: str
    reason: str
    detail: str
    annotation_id: str | None = None


@dataclass(frozen=True)
class PhotoInfo:
    """`size_hw` after EXIF orientation, `stored_hw` before, `orientation` the EXIF value 1 to 8."""

    size_hw: tuple[int, int]
    stored_hw: tuple[int, int]
    orientation: int


@contextmanager
def photo_set_aside() -> Iterator[None]:
    """Turns the InputError of a photo that cannot be used into the RowError that sets its row aside, with the same reason."""
    try:
        yield
    except InputError as error:
        raise RowError(error.code, error.detail) from None


def read_photo_info(data: bytes) -> PhotoInfo:
    """Decode the photo to its last byte as training does, at the smallest scale that its format has, and say its size.

    Raises RowError with the codes of `pixellm.photos.decode_photo`: what is kept here can be decoded everywhere.
    """
    with photo_set_aside():
        header = open_photo(data)
        decode_photo(data, side=1)
    return PhotoInfo(header.size_hw, header.stored_hw, header.orientation)


def build_region(rle: RLE, category: str, description: str | None = None, ignore: bool = False) -> Region:
    """A region with its exact area and box. Raises RowError `empty_mask`."""
    area = rle_area(rle)
    if not area:
        raise RowError("empty_mask", f"the mask of {category!r} has no pixel")
    return Region(rle_size=list(rle["size"]), rle_counts=rle["counts"], category=category, description=description,
                  box_xywh=rle_box_xywh(rle), area=area, ignore=ignore)


def region_rle(region: Region) -> RLE:
    """The mask of a region as RLE."""
    return RLE(size=[int(side) for side in region["rle_size"]], counts=region["rle_counts"])


def validate_row(row: Row) -> None:
    """Check all that a reader may rely on. Raises RowError with the first thing that is wrong; its reasons are

    `missing_id`, those of `read_photo_info`, `size_mismatch` (photo against row, region against row), `rle_invalid`, `empty_mask`,
    `area_mismatch`, `box_mismatch`, `empty_text` (a category, question or answer without text), `no_conversation`, `unknown_task`,
    `seg_in_question`, `seg_count_mismatch`, `empty_target`, `target_index` (no such region, or one that is to be ignored),
    `no_template` (a text is missing and cannot be drawn: a question of a task that is not in `DRAWN_TASKS`, any text without targets).
    """
    empty = next((name for name in ("image_id", "source", "split") if not row[name]), None)  # type: ignore[literal-required]
    if empty:
        raise RowError("missing_id", f"{empty} is empty; image_id, source and split name a row")
    size_hw = (row["height"], row["width"])
    photo = read_photo_info(row["image"])
    if photo.size_hw != size_hw:
        raise RowError("size_mismatch", f"the upright photo is {photo.size_hw} (h, w), the row says {size_hw}")
    for index, region in enumerate(row["regions"]):
        _validate_region(region, index, size_hw)
    if not row["conversations"]:
        raise RowError("no_conversation", "a row has at least one conversation")
    for index, conversation in enumerate(row["conversations"]):
        validate_conversation(conversation, index, row["regions"])


def _validate_region(region: Region, index: int, size_hw: tuple[int, int]) -> None:
    if tuple(region["rle_size"]) != size_hw:
        raise RowError("size_mismatch", f"region {index} is {region['rle_size']} (h, w), the photo {list(size_hw)}")
    rle = region_rle(region)
    check_rle(rle)
    area = rle_area(rle)
    if not area:
        raise RowError("empty_mask", f"region {index} ({region['category']!r}) has no pixel")
    if area != region["area"]:
        raise RowError("area_mismatch", f"region {index} has {area} pixels, the row says {region['area']}")
    box_xywh = rle_box_xywh(rle)
    if box_xywh != list(region["box_xywh"]):
        raise RowError("box_mismatch", f"region {index} has box {box_xywh}, the row says {list(region['box_xywh'])}")
    if not region["category"].strip():
        raise RowError("empty_text", f"region {index} has no category")


def validate_conversation(conversation: Conversation, index: int, regions: list[Region]) -> None:
    """What `validate_row` checks of conversation number `index`, with its reasons."""
    question, answer, targets = conversation["question"], conversation["answer"], conversation["targets"]
    if conversation["task"] not in TASKS:
        raise RowError("unknown_task", f"conversation {index} has task {conversation['task']!r}, known are {', '.join(TASKS)}")
    if any(text is not None and not text.strip() for text in (question, answer)):
        raise RowError("empty_text", f"conversation {index} has a question or an answer without text; use null for one to be drawn")
    if (question is None and conversation["task"] not in DRAWN_TASKS) or ((question is None or answer is None) and not targets):
        raise RowError("no_template", f"conversation {index} of task {conversation['task']} with {len(targets)} targets needs its text")
    if question is not None and SEG in question:
        raise RowError("seg_in_question", f"conversation {index}: {SEG} belongs into the answer, found {question!r}")
    if answer is not None and answer.count(SEG) != len(targets):
        raise RowError("seg_count_mismatch", f"conversation {index}: {answer.count(SEG)} {SEG} in the answer but {len(targets)} targets")
    for target in targets:
        if not target:
            raise RowError("empty_target", f"conversation {index} has a target without a region")
        wrong = next((region for region in target if not 0 <= region < len(regions) or regions[region]["ignore"]), None)
        if wrong is not None:
            what = "is to be ignored" if 0 <= wrong < len(regions) else f"does not exist among {len(regions)}"
            raise RowError("target_index", f"conversation {index} points at region {wrong}, which {what}")
