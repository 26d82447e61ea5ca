"""What goes over the wire: the JSON request, the answer, a problem. Sizes, boxes and areas refer to the upright photo (after EXIF)."""

import uuid
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from pixellm.drawing import color_of
from pixellm.masks import RLE
from pixellm.settings import StrictModel

if TYPE_CHECKING:
    from pixellm.inference.segmentation import Segmentation, Target


MAX_QUESTIONS = 1024  # longer lists are refused unread; `max_questions` is what is answered


class SegmentFields(StrictModel):
    """What is asked about a photo, and how the answer is to come."""

    question: str | Annotated[list[str], Field(max_length=MAX_QUESTIONS)] = Field(
        description="What to answer and to point at; several questions about the photo give `answers`.",
        examples=["Which of these can roll?"])
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer in tokens; the server's limit when left out.")
    format: Literal["rle", "polygons", "png", "label_map"] = Field(default="rle", description=(
        "Form of the masks: COCO's compressed RLE, polygons without holes, a PNG each, or one PNG in which the pixels of mask 0 have the "
        "value 1, and so on (the later one where two overlap)."))
    model: str | None = Field(default=None, description="A name that `/v1/models` lists; its first when left out.")
    stream: bool = Field(default=False, description="Send text and masks as soon as they are known, as server-sent events.")


class SegmentRequest(SegmentFields):
    """Questions about a photo, as `application/json`."""

    image: str = Field(description="The photo (JPEG, PNG or WebP) as base64, or as a `data:` URL with base64; an https "
                       "URL where the deployment fetches those.", json_schema_extra={"format": "byte"})


class SegmentForm(SegmentFields):
    """Questions about a photo, as `multipart/form-data`; `question` can come several times."""

    image: bytes = Field(description="The photo as a file: JPEG, PNG or WebP.", json_schema_extra={"format": "binary"})


class Rle(BaseModel):
    """A mask in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(description="[height, width] in pixels")
    counts: str


class Mask(BaseModel):
    """One target of the answer."""

    id: str
    label: str = Field(description="The phrase of `text` that the mask belongs to.")
    span: tuple[int, int] = Field(description="[start, end) of `label` in `text`, in Unicode code points.")
    score: float = Field(description="Mean probability over the mask's pixels, 0 to 1.")
    bbox: tuple[int, int, int, int] = Field(description="[x, y, width, height] in pixels")
    area: int = Field(description="Number of pixels")
    segmentation: Rle | list[list[int]] | str | None = Field(default=None, description=(
        "By `format`: an RLE; polygons [x0, y0, x1, y1, …] in pixels whose union is the mask; a black and white PNG in base64; none."))
    color: str = Field(description="A colour to draw it in, `#rrggbb`.")

    @classmethod
    def from_target(cls, target: "Target", index: int) -> "Mask":
        """An answer's target `index`."""
        box = target.box_xywh
        return cls(id=f"mask_{index}", label=target.phrase, span=target.span, score=round(float(target.score), 4),
                   bbox=(box[0], box[1], box[2], box[3]), area=target.area, segmentation=Rle.model_validate(target.rle),
                   color="#{:02x}{:02x}{:02x}".format(*color_of(index)))

    @property
    def rle(self) -> RLE:
        """The segmentation in the form of `pixellm.masks`. Raises ValueError where it came in another format."""
        if not isinstance(self.segmentation, Rle):
            raise ValueError(f"mask {self.id} did not come as an RLE; ask with the format rle")
        return RLE(size=list(self.segmentation.size), counts=self.segmentation.counts)


class Usage(BaseModel):
    prompt_tokens: int = Field(description="Those of the photo included.")
    completion_tokens: int


class SegmentResponse(BaseModel):
    """The answer, and one mask for each thing that it points at."""

    id: str
    model: str
    text: str = Field(description="The answer for people.")
    answer: str = Field(description="The answer with `{seg}` where each mask was named, in the order of `masks`.")
    finish_reason: Literal["stop", "length", "max_targets"]
    size: tuple[int, int] = Field(description="[height, width] of the upright photo")
    masks: list[Mask]
    usage: Usage
    label_map: str | None = Field(default=None, description="With `format` `label_map`: a grey PNG in base64.")

    @classmethod
    def from_segmentation(cls, segmentation: "Segmentation", model_name: str) -> "SegmentResponse":
        """A model's answer, with an id of its own."""
        return cls(id=f"seg_{uuid.uuid4().hex}", model=model_name, text=segmentation.text, answer=segmentation.answer,
                   finish_reason=segmentation.finish_reason, size=segmentation.size_hw,
                   masks=[Mask.from_target(target, index) for index, target in enumerate(segmentation.targets)],
                   usage=Usage(prompt_tokens=segmentation.num_prompt_tokens, completion_tokens=segmentation.num_tokens))


class SegmentAnswers(BaseModel):
    """The answers to several questions, in their order."""

    answers: list[SegmentResponse]


class SegmentPart(BaseModel):
    """What is new about the answer to one question, as the data of a server-sent event."""

    question: int = Field(description="Index of the question, from 0.")
    text: str | None = Field(default=None, description="Event `text`: what comes next in the text.")
    mask: Mask | None = Field(default=None, description="Event `mask`: the next mask.")
    answer: SegmentResponse | None = Field(default=None, description="Event `answer`: all of it.")


class OpenAIError(BaseModel):
    """The same problem for clients that read OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(BaseModel):
    """A problem (RFC 9457, `application/problem+json`)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str = Field(description="A stable name of the problem, such as `photo_unreadable`.")
    request_id: str
    error: OpenAIError


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    model: str


class Readiness(BaseModel):
    status: Literal["ready"] = "ready"
    model: str
    answered_s_ago: float = Field(description="Seconds since the last answer, to a question or to a canary, of the model that "
                                  "answered longest ago.")
