"""`POST /v1/chat/completions` and `GET /v1/models`: OpenAI's protocol, so that its clients work as they are."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator

from fastapi import FastAPI, Request

from serve.chat_schemas import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    ChatUsage,
    Choice,
    ChunkChoice,
    Delta,
    FinishReason,
    GroundedText,
    ModelCard,
    ModelList,
)
from serve.config import AppConfig
from serve.conversations import read_conversation
from serve.limits import JSON, answer_options, checked_model, in_time, read_image, read_json, read_photo
from serve.messages import Ask, Event, Model
from serve.openapi import problem_responses, ref, request_body
from serve.problems import ApiError
from serve.schemas import Mask, SegmentResponse, Usage
from serve.streams import EVENT_STREAM, event_stream, server_sent_event

_NAME = "$response.body#/data/0/id"
_LINKS = {"card": {"operationRef": "#/paths/~1v1~1models~1{name}/get", "parameters": {"name": _NAME}},
          "talk": {"operationRef": "#/paths/~1v1~1chat~1completions/post", "requestBody": {"model": _NAME}},
          "ask": {"operationRef": "#/paths/~1v1~1segment/post", "requestBody": {"model": _NAME}}}
_STREAM = {EVENT_STREAM: {"schema": {"description": "With `stream`: a ChatChunk each, then `[DONE]`."}}}


def add_chat_routes(api: FastAPI, config: AppConfig, model: Model) -> None:
    """Answers with `model`, within the limits of `config`."""
    cards = {each.model_name: ModelCard(id=each.model_name, created=int(time.time())) for each in config.models}

    @api.get("/v1/models", summary="The models that can be asked", responses={200: {"links": _LINKS}})
    async def models() -> ModelList:
        return ModelList(data=list(cards.values()))

    @api.get("/v1/models/{name:path}", summary="One of the models", responses={404: problem_responses()[404]})
    async def model_by_name(name: str) -> ModelCard:
        return cards[checked_model(name, config).model_name]

    @api.post("/v1/chat/completions", summary="Talk about a photo, by OpenAI's protocol",
              responses={200: {"content": _STREAM}, **problem_responses()}, openapi_extra=request_body({JSON: ref(ChatRequest)}))
    async def complete(request: Request) -> ChatCompletion:
        body = await read_json(request, config, ChatRequest)
        chosen = checked_model(body.model, config)
        conversation = await asyncio.to_thread(read_conversation, body.messages, config)
        limit = min(chosen.max_new_tokens, body.max_completion_tokens or body.max_tokens or chosen.max_new_tokens)
        stop = tuple([body.stop] if isinstance(body.stop, str) else body.stop or [])
        if len(stop) > 4 or "" in stop:
            raise ApiError(422, "stop_invalid", f"stop has {len(stop)} texts, expected at most 4, none of them empty.", "stop")
        pixels = await read_photo(await read_image(conversation.image, config, "messages"), config, request)
        options = answer_options(request, config, temperature=body.temperature or None, top_p=body.top_p or 1.0, seed=body.seed or 0,
                                 stop=stop, history=conversation.history)
        events = in_time(model, Ask(pixels, (conversation.question,), limit, options, bool(body.stream), chosen.model_name))
        name = ChatChunk(id=f"chatcmpl-{uuid.uuid4().hex}", created=int(time.time()), model=body.model, choices=[])
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            return await event_stream(_chunks(events, name, with_usage), request)  # type: ignore[return-value]
        (answer,) = [event.news async for event in events if isinstance(event.news, SegmentResponse)]
        message = AnswerMessage(content=answer.text, masks=answer.masks, grounding=to_grounding(answer.text, answer.masks))
        return ChatCompletion(id=name.id, created=name.created, model=name.model, usage=_to_usage(answer.usage),
                              choices=[Choice(message=message, finish_reason=_finish_reason(answer))])


async def _chunks(events: AsyncGenerator[Event, None], name: ChatChunk, with_usage: bool) -> AsyncGenerator[str, None]:
    """Role, content, masks, finish reason, usage where it is wanted, the end."""

    def event(**changes) -> str:
        return server_sent_event(name.model_copy(update=changes).model_dump_json(exclude_unset=True))

    def delta(finish_reason: FinishReason | None = None, **new) -> str:
        return event(object=name.object, choices=[ChunkChoice(index=0, delta=Delta(**new), finish_reason=finish_reason)])

    is_first = True
    async for each in events:
        if is_first:
            is_first = False
            yield delta(role="assistant", content="")
        if isinstance(each.news, Mask):
            yield delta(content="", masks=[each.news])
        elif isinstance(each.news, SegmentResponse):
            yield delta(finish_reason=_finish_reason(each.news), grounding=to_grounding(each.news.text, each.news.masks))
            if with_usage:
                yield event(object=name.object, usage=_to_usage(each.news.usage))
        else:
            yield delta(content=each.news)
    yield server_sent_event("[DONE]")


def to_grounding(text: str, masks: list[Mask]) -> list[GroundedText]:
    """`text` cut where a mask's span begins or ends; a mask without words has an empty piece."""
    places = sorted({0, len(text), *(place for mask in masks for place in mask.span)})
    pieces: list[GroundedText] = []
    for start, end in zip(places, [*places[1:], None], strict=True):
        wordless = [mask.id for mask in masks if mask.span == (start, start)]
        if wordless:
            pieces.append(GroundedText(text="", mask_ids=wordless))
        if end is not None:
            named = [mask.id for mask in masks if mask.span[0] <= start and end <= mask.span[1]]
            pieces.append(GroundedText(text=text[start:end], mask_ids=named))
    return pieces


def _finish_reason(answer: SegmentResponse) -> FinishReason:
    return "stop" if answer.finish_reason == "stop" else "length"


def _to_usage(usage: Usage) -> ChatUsage:
    return ChatUsage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens,
                     total_tokens=usage.prompt_tokens + usage.completion_tokens)
