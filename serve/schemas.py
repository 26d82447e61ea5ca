"""What goes over the wire: the JSON request, the answer, a problem. Sizes, boxes and areas refer to the upright photo (after EXIF)."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pixellm.settings import StrictModel


class SegmentRequest(StrictModel):
    """A question about a photo, as `application/json`."""

    model_config = ConfigDict(strict=True)

    image: str = Field(description="The photo (JPEG, PNG or WebP) as base64, or as a `data:` URL with base64.")
    question: str = Field(description="What to answer and to point at.", examples=["Which of these can roll?"])
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer in tokens; the server's limit when left out.")


class SegmentForm(StrictModel):
    """A question about a photo, as `multipart/form-data`."""

    image: bytes = Field(description="The photo as a file: JPEG, PNG or WebP.", json_schema_extra={"format": "binary"})
    question: str = Field(description="What to answer and to point at.", examples=["Which of these can roll?"])
    max_new_tokens: int | None = Field(default=None, ge=1, description="Longest answer in tokens; the server's limit when left out.")


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
    segmentation: Rle
    color: str = Field(description="A colour to draw it in, `#rrggbb`.")


class Usage(BaseModel):
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
