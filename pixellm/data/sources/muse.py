"""MUSE: questions that need reasoning, with several things to be marked in each answer. The one place that knows its JSON form.

A file is a list; an entry has a photo of COCO (2017 by its `coco_url`, or train2014 by its `file_name`), and questions with the annotations
that answer each. Format: `utils/multi_reason_seg_dataset.py` of github.com/MaverickRen/PixelLM.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field

from pixellm.data.schema import Conversation, Region, RejectedRow, Row, validate_conversation
from pixellm.data.sources.agreement import AnnotationForm
from pixellm.data.sources.frame import PhotoFrame
from pixellm.data.sources.json_files import read_json
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, Source, SourcePlan
from pixellm.errors import RowError
from pixellm.storage import join_uri
from pixellm.uris import Uri

PositiveInt = Annotated[int, msgspec.Meta(gt=0)]


class MuseAnnotation(msgspec.Struct, omit_defaults=True):
    """A thing: `segmentation` is polygons or RLE, `bbox` is xywh in pixels, `rephrased_name` is GPT-4V's description of it."""

    segmentation: Any
    category_name: str
    rephrased_name: Any = None
    bbox: Any = None
    category_id: Any = None


class MuseEntry(msgspec.Struct, omit_defaults=True):
    """A photo and its questions: `answers[i]` are the targets of `questions[i]`, `text_answers[i]` its text with a `{seg}` for each."""

    height: PositiveInt
    width: PositiveInt
    questions: list[str]
    answers: list[list[MuseAnnotation]]
    text_answers: list[str | None] | None = None
    ann_list: Any = None
    coco_url: Any = None
    file_name: Any = None

    def __post_init__(self) -> None:
        texts = self.questions if self.text_answers is None else self.text_answers
        if not len(self.questions) == len(self.answers) == len(texts):
            raise ValueError(f"{len(self.questions)} questions, {len(self.answers)} answers and {len(texts)} text_answers")


class _Photo(msgspec.Struct):
    height: PositiveInt
    width: PositiveInt
    coco_url: Any = None
    file_name: Any = None

    @property
    def names(self) -> dict[str, str | None]:
        """Names that the photo is looked up by."""
        return {"file_name": _to_text(self.file_name), "coco_url": _to_text(self.coco_url)}


class MuseSource(Source, AnnotationForm):
    """MUSE: several targets per question, found by reasoning. `input` is the folder with muse_SPLIT.json."""

    dataset: ClassVar[str] = "muse"

    input: Uri
    split: Literal["train", "val", "test_less", "test_many"]
    photos: Uri | None = Field(None, description="folder of COCO's photos (train2017, val2017, train2014), where they are not below input")

    def plan(self) -> SourcePlan:
        """One record per photo, with all its entries."""
        parts = find_parts("MUSE", "the MUSE dataset of PixelLM and COCO's train2017.zip, val2017.zip and train2014.zip", {
            "annotations": [join_uri(self.input, f"muse_{self.split}.json")], "photos": [self.photos or self.input]})
        raws, sha256 = read_json(parts["annotations"], list[msgspec.Raw])
        folder = PhotoFolder(parts["photos"])
        draft = PlanDraft(self.dataset, self.split, folder, counted="questions")
        photos: dict[str, _Photo] = {}
        entries: dict[str, list[msgspec.Raw]] = defaultdict(list)
        for number, raw in enumerate(raws):
            try:
                photo = msgspec.json.decode(raw, type=_Photo, strict=False)
            except msgspec.DecodeError as error:
                draft.reject(None, RowError("image_invalid", str(error)), annotation_id=str(number))
                continue
            image_id = folder.id_of(photo.names)
            first = photos.setdefault(image_id, photo)
            if (first.height, first.width) == (photo.height, photo.width):
                entries[image_id].append(raw)
            else:
                detail = f"{photo.height} x {photo.width} (h, w), an entry before says {first.height} x {first.width}"
                draft.reject(image_id, RowError("size_mismatch", detail), annotation_id=str(number))
        for image_id, photo in photos.items():
            draft.add(image_id, photo.names, b"[%b]" % b",".join(entries.pop(image_id)))
        return draft.finish(MuseBuilder(self.split, AnnotationForm(coordinates=self.coordinates, boxes=self.boxes)), f"sha256:{sha256}")


@dataclass(frozen=True)
class MuseBuilder:
    """One conversation per question; an answer without text is drawn when streamed, from descriptions or category names."""

    split: str
    form: AnnotationForm | None = None

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. A question goes with any of its annotations; its `annotation_id` is ENTRY/QUESTION, counted on this photo.

        Raises RowError `no_usable_annotation` and those of PhotoFrame.
        """
        raws = msgspec.json.decode(record.payload, type=list[msgspec.Raw])
        first = msgspec.json.decode(raws[0], type=_Photo, strict=False)
        regions = _Regions(PhotoFrame(photo, (first.height, first.width), self.form))
        conversations: list[Conversation] = []
        for number, raw in enumerate(raws):
            try:
                entry = msgspec.json.decode(raw, type=MuseEntry, strict=False)
            except msgspec.DecodeError as error:
                yield RejectedRow(record.image_id, MuseSource.dataset, "annotation_invalid", str(error), annotation_id=str(number))
                continue
            texts = entry.text_answers or [None] * len(entry.questions)
            for index, (question, targets, text) in enumerate(zip(entry.questions, entry.answers, texts, strict=True)):
                try:
                    conversation = Conversation(question=question, answer=text, targets=[[regions.index_of(each)] for each in targets],
                                                task="reasoning")
                    validate_conversation(conversation, index, regions.regions)
                except RowError as error:
                    yield RejectedRow(record.image_id, MuseSource.dataset, error.reason, error.detail, annotation_id=f"{number}/{index}")
                else:
                    conversations.append(conversation)
        if not conversations:
            raise RowError("no_usable_annotation", "none of its questions can be used")
        height, width = regions.frame.size_hw
        yield Row(image_id=record.image_id, source=MuseSource.dataset, split=self.split, image=photo, height=height, width=width,
                  regions=regions.regions, conversations=conversations, license=None, url=first.names["coco_url"])


class _Regions:
    """Regions of a photo, each once, however many questions it answers."""

    def __init__(self, frame: PhotoFrame):
        self.frame = frame
        self.regions: list[Region] = []
        self._indices: dict[bytes, int] = {}

    def index_of(self, annotation: MuseAnnotation) -> int:
        key = msgspec.json.encode(annotation)
        if key not in self._indices:
            if not annotation.category_name.strip():
                raise RowError("empty_text", "an annotation has no category_name")
            region = self.frame.region({"segmentation": annotation.segmentation, "bbox": annotation.bbox}, annotation.category_name,
                                       _to_text(annotation.rephrased_name))
            self._indices[key] = len(self.regions)
            self.regions.append(region)
        return self._indices[key]


def _to_text(value: Any) -> str | None:
    """A text that is there and not empty."""
    return value.strip() or None if isinstance(value, str) else None
