"""OpenAI's chat completions on the wire, as far as they mean something here, with masks in `message.masks` and `delta.masks`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.schemas import Mask

FinishReason = Literal["stop", "length"]
MAX_ITEMS = 1024  # of a list: more than any conversation that fits into a prompt; longer ones are refused unread


class _Open(BaseModel):
    """Fields that are not known here are left alone: OpenAI's clients send many."""

    model_config = ConfigDict(extra="allow")


class ImageUrl(_Open):
    url: str = Field(description="The photo (JPEG, PNG or WebP) as a `data:` URL with base64; an https URL where the "
                     "deployment fetches those.")


class ContentPart(_Open):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | str | None = None


class NamedMask(_Open):
    """A mask of an earlier answer, of which only the place in the text counts."""

    span: tuple[int, int]


class ChatMessage(_Open):
    """One turn. Questions are about one photo, which is part of a `user` message; an earlier answer may keep its `masks`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(max_length=MAX_ITEMS)] | None = None
    masks: list[NamedMask] | None = Field(default=None, max_length=MAX_ITEMS)


class StreamOptions(_Open):
    include_usage: bool = False


class ResponseFormat(_Open):
    type: Literal["text"]


class ChatRequest(_Open):
    """A conversation about a photo, whose last message is a question.

    A parameter of OpenAI's that would change the answer, and that this server has not, is refused by its name; a value of it that changes
    nothing is taken, and so is any parameter that is not known here.
    """

    model: str = Field(description="A name that `/v1/models` lists.")
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_ITEMS)
    max_completion_tokens: int | None = Field(default=None, ge=1, description="Longest answer; more than the server's limit is that limit.")
    max_tokens: int | None = Field(default=None, ge=1, description="The older name of `max_completion_tokens`.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Left out or 0: the most likely tokens.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-2**63, lt=2**63, description="Any int64; the same one draws the same answer. -1: the server "
                             "draws anew each time.")
    stop: str | Annotated[list[str], Field(max_length=MAX_ITEMS)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = Field(default=None, description="`text` only: answers are sentences with masks.")
    tools: list[Any] | None = Field(default=None, max_length=0, description="None: the model calls no functions.")
    functions: list[Any] | None = Field(default=None, max_length=0, description="None, as `tools`.")
    tool_choice: Literal["none", "auto"] | None = Field(default=None, description="Nothing is called either way.")
    function_call: Literal["none", "auto"] | None = None
    logprobs: Literal[False] | None = Field(default=None, description="Not returned.")
    top_logprobs: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    modalities: list[Literal["text"]] | None = Field(default=None, max_length=1)
    audio: None = None
    prediction: None = None


class GroundedText(BaseModel):
    """A piece of the content, and the masks that it names. All pieces in order are the content."""

    text: str
    mask_ids: list[str]


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    masks: list[Mask] = Field(description="Spans are of `content`.")
    grounding: list[GroundedText]


class Choice(BaseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Seconds since 1970.")
    model: str
    choices: list[Choice]
    usage: ChatUsage


class Delta(BaseModel):
    """What is new; fields that are not new are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    masks: list[Mask] | None = None
    grounding: list[GroundedText] | None = Field(default=None, description="With the finish reason.")


class ChunkChoice(BaseModel):
    index: int = 0
    delta: Delta
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """The data of a server-sent event. After the last one comes the data `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice] = Field(description="Empty in the chunk that has the usage.")
    usage: ChatUsage | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since 1970.")
    owned_by: str = "pixellm"


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
