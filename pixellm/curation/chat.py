"""A request to a model and its answer: what is sent, what names it in the cache, and about how many tokens it takes. Sends nothing."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from PIL import Image
from pydantic import BaseModel, Field

from pixellm.curation.config import EndpointConfig
from pixellm.drawing import to_data_uri
from pixellm.photos import decode_photo
from pixellm.settings import StrictModel

CHARACTERS_PER_TOKEN = 3  # English has about four: an estimate is rather too high


@dataclass(frozen=True)
class Picture:
    """A photo to look at: `data` is the encoded file; what is sent is upright, a JPEG, its longer side at most `side` pixels."""

    data: bytes = field(repr=False)
    side: int

    def digest(self) -> str:
        """Of the file, not of what is sent: another version of a JPEG library must not make it another request."""
        return f"{hashlib.sha256(self.data).hexdigest()}/{self.side}"

    def to_data_uri(self) -> str:
        """Raises InputError like `decode_photo`."""
        photo, _ = decode_photo(self.data, self.side)
        photo.thumbnail((self.side, self.side), Image.Resampling.BICUBIC)
        return to_data_uri(photo)


@dataclass(frozen=True)
class ChatRequest:
    """`turns` are texts of the user and of the model in turn, the first and the last the user's; `picture` goes with the first.

    `stage` is what costs are counted under, `prompt` the name and version of the prompt. The answer is JSON of `answer_type`, or text.
    """

    stage: str
    prompt: str
    turns: tuple[str, ...]
    picture: Picture | None = None
    answer_type: type[StrictModel] | None = None

    def key(self, endpoint: EndpointConfig) -> str:
        """sha256 of all that the answer depends on. The URL is not in it: the same model may move."""
        parts = [endpoint.model, endpoint.temperature, endpoint.max_output_tokens, self.turns, self.picture and self.picture.digest(),
                 self.answer_type and self.answer_type.model_json_schema()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def body(self, endpoint: EndpointConfig) -> dict[str, Any]:
        """The JSON that is posted."""
        messages: list[dict[str, Any]] = [{"role": ("user", "assistant")[place % 2], "content": turn}
                                          for place, turn in enumerate(self.turns)]
        if self.picture:
            messages[0]["content"] = [{"type": "image_url", "image_url": {"url": self.picture.to_data_uri()}},
                                      {"type": "text", "text": self.turns[0]}]
        body = {"model": endpoint.model, "messages": messages, "max_tokens": endpoint.max_output_tokens,
                "temperature": endpoint.temperature}
        if self.answer_type:
            schema = {"name": self.answer_type.__name__.lower(), "strict": True, "schema": self.answer_type.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def input_tokens(self, endpoint: EndpointConfig) -> int:
        """An estimate, rather too high."""
        return math.ceil(sum(map(len, self.turns)) / CHARACTERS_PER_TOKEN) + (endpoint.image_tokens if self.picture else 0)


class Completion(StrictModel):
    """An answer as it is cached, with its provenance. `request` is the key of the request, `created` UTC in ISO form.

    `served_by` is what the endpoint calls the model. `finish_reason` is `length` where `max_output_tokens` cut it off.
    """

    content: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    model: str
    served_by: str
    stage: str
    prompt: str
    created: str
    request: str


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Response(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    model: str = ""
    usage: _Usage | None = None


def read_completion(data: bytes, request: ChatRequest, endpoint: EndpointConfig) -> Completion:
    """Out of the endpoint's response; tokens are estimated where it does not tell. Raises ValueError for what is no chat completion."""
    response = _Response.model_validate_json(data)
    content = response.choices[0].message.content or ""
    usage = response.usage or _Usage(prompt_tokens=request.input_tokens(endpoint),
                                     completion_tokens=math.ceil(len(content) / CHARACTERS_PER_TOKEN))
    return Completion(
        content=content, finish_reason=response.choices[0].finish_reason or "", input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens, model=endpoint.model, served_by=response.model, stage=request.stage, prompt=request.prompt,
        created=datetime.now(UTC).isoformat(timespec="seconds"), request=request.key(endpoint))
