"""LLaVA-Instruct-150k: conversations about COCO's photos, without masks.

A file is a list; an entry has `id`, `image` and `conversations`, in turn of `human` and of `gpt`, the photo's place marked by `<image>`.
A photo comes in up to three entries. Format: `docs/Data.md` of github.com/haotian-liu/LLaVA.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import msgspec
from pydantic import Field

from pixellm.data.schema import Conversation, RejectedRow, Row, read_photo_info, validate_conversation
from pixellm.data.sources.json_files import read_json
from pixellm.data.sources.layout import find_parts
from pixellm.data.sources.photos import PhotoFolder
from pixellm.data.sources.plan import PhotoRecord, PlanDraft, Source, SourcePlan
from pixellm.errors import RowError
from pixellm.storage import join_uri
from pixellm.uris import Uri

IMAGE_MARKER = "<image>"


class _Photo(msgspec.Struct):
    image: str


class _Turn(msgspec.Struct):
    speaker: str = msgspec.field(name="from")
    value: str


class _Entry(msgspec.Struct):
    conversations: list[_Turn]


class LlavaInstructSource(Source):
    """LLaVA-Instruct-150k: questions and answers without masks. `input` is the folder with the annotation file."""

    dataset: ClassVar[str] = "llava_instruct"

    input: Uri
    annotations: str = Field("llava_instruct_150k.json", description="name of the file below input")
    photos: Uri | None = Field(None, description="folder of COCO's photos (train2017), where they are not below input")

    def plan(self) -> SourcePlan:
        """One record per photo, with all its entries."""
        parts = find_parts("LLaVA-Instruct", "llava_instruct_150k.json of LLaVA-Instruct-150K and COCO's train2017.zip", {
            "annotations": [join_uri(self.input, self.annotations)], "photos": [self.photos or self.input]})
        raws, sha256 = read_json(parts["annotations"], list[msgspec.Raw])
        folder = PhotoFolder(parts["photos"])
        draft = PlanDraft(self.dataset, "train", folder, counted="questions")
        names: dict[str, str] = {}
        entries: dict[str, list[msgspec.Raw]] = defaultdict(list)
        for number, raw in enumerate(raws):
            try:
                name = msgspec.json.decode(raw, type=_Photo).image
            except msgspec.DecodeError as error:
                draft.reject(None, RowError("image_invalid", str(error)), annotation_id=str(number))
                continue
            image_id = folder.id_of({"file_name": name})
            names.setdefault(image_id, name)
            entries[image_id].append(raw)
        for image_id, name in names.items():
            draft.add(image_id, {"file_name": name}, b"[%b]" % b",".join(entries.pop(image_id)))
        return draft.finish(LlavaInstructBuilder(), f"sha256:{sha256}")


@dataclass(frozen=True)
class LlavaInstructBuilder:
    """One conversation per question and its answer: rows hold no turns, so each question stands for itself."""

    def build(self, record: PhotoRecord, photo: bytes) -> Iterator[Row | RejectedRow]:
        """See RowBuilder. The `annotation_id` of what is set aside is ENTRY or ENTRY/QUESTION, counted on this photo.

        Raises RowError `no_usable_annotation` and those of `read_photo_info`.
        """
        height, width = read_photo_info(photo).size_hw
        conversations: list[Conversation] = []
        for number, raw in enumerate(msgspec.json.decode(record.payload, type=list[msgspec.Raw])):
            try:
                pairs = _pairs(raw)
            except RowError as error:
                yield RejectedRow(record.image_id, LlavaInstructSource.dataset, error.reason, error.detail, annotation_id=str(number))
                continue
            for index, conversation in enumerate(pairs):
                try:
                    validate_conversation(conversation, index, [])
                except RowError as error:
                    yield RejectedRow(record.image_id, LlavaInstructSource.dataset, error.reason, error.detail, f"{number}/{index}")
                else:
                    conversations.append(conversation)
        if not conversations:
            raise RowError("no_usable_annotation", "none of its questions can be used")
        yield Row(image_id=record.image_id, source=LlavaInstructSource.dataset, split="train", image=photo, height=height, width=width,
                  regions=[], conversations=conversations, license=None, url=None)


def _pairs(raw: msgspec.Raw) -> list[Conversation]:
    """Raises RowError `annotation_invalid` unless the turns are of human and gpt by turns."""
    try:
        turns = msgspec.json.decode(raw, type=_Entry).conversations
    except msgspec.DecodeError as error:
        raise RowError("annotation_invalid", str(error)) from None
    turns = turns[1:] if turns and turns[0].speaker == "gpt" else turns  # nobody asked for it
    if len(turns) % 2 or any(turn.speaker != ("human", "gpt")[index % 2] for index, turn in enumerate(turns)):
        raise RowError("annotation_invalid", f"turns of {', '.join(turn.speaker for turn in turns)}; expected human, gpt, human, gpt, …")
    texts = [turn.value.replace(IMAGE_MARKER, "").strip() for turn in turns]
    return [Conversation(question=question, answer=answer, targets=[], task="vqa")
            for question, answer in zip(texts[0::2], texts[1::2], strict=True)]
