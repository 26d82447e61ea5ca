"""`POST /v1/segment`: questions about one photo, as a form, as JSON, or with the photo itself as the body."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from serve.config import AppConfig
from serve.limits import (
    JSON,
    answer_options,
    checked_limit,
    checked_model,
    checked_question,
    field_problem,
    in_time,
    media_type,
    parse_json,
    read_image,
    read_photo,
    receive,
)
from serve.messages import Ask, Event, Model
from serve.openapi import problem_responses, query_parameters, ref, request_body
from serve.outputs import MaskFormat, to_answer_format, to_format
from serve.pools import PARSING
from serve.problems import ApiError
from serve.schemas import Mask, SegmentAnswers, SegmentFields, SegmentForm, SegmentPart, SegmentRequest, SegmentResponse
from serve.streams import EVENT_STREAM, event_stream, server_sent_event

FORM, IMAGE = "multipart/form-data", "image/*"
_REQUEST = request_body({FORM: ref(SegmentForm), JSON: ref(SegmentRequest), IMAGE: {"schema": {"type": "string", "format": "binary"}}})
_STREAM = {EVENT_STREAM: {"schema": {"description": (
    "With `stream`: events `text`, `mask` and `answer`, whose data is a SegmentPart each; `answer` is the last one of its question. A "
    "failure is an event `error` with a Problem, and ends the stream.")}}}


class _Body(NamedTuple):
    image: bytes | str  # the photo itself, or what JSON has in its place
    fields: SegmentFields


def add_segment_route(api: FastAPI, config: AppConfig, model: Model) -> None:
    """Answers with `model`, within the limits of `config`."""

    @api.post("/v1/segment", summary="Ask questions about a photo", response_model_exclude_none=True,
              responses={200: {"content": _STREAM}, **problem_responses()}, openapi_extra=_REQUEST | query_parameters(SegmentFields))
    async def segment(request: Request) -> SegmentResponse | SegmentAnswers:
        """The fields are part of a form or of JSON; with the photo itself as the body they are the query's."""
        body = await receive(request, config, _read_body)
        fields = body.fields
        questions = _checked_questions(fields, config)
        chosen = checked_model(fields.model, config)
        limit = checked_limit(fields.max_new_tokens, chosen)
        image = body.image if isinstance(body.image, bytes) else await read_image(body.image, config)
        pixels = await read_photo(image, config, request)
        events = in_time(model, Ask(pixels, questions, limit, answer_options(request, config), fields.stream, chosen.model_name))
        if fields.stream:
            return await event_stream(_parts(events, fields.format), request)  # type: ignore[return-value]
        answers = await gather_answers(events, fields.format)
        return answers[0] if isinstance(fields.question, str) else SegmentAnswers(answers=answers)


async def gather_answers(events: AsyncIterator[Event], mask_format: MaskFormat = "rle") -> list[SegmentResponse]:
    """The answers to all questions, in their order."""
    answers = {event.index: event.news async for event in events if isinstance(event.news, SegmentResponse)}
    return [await asyncio.to_thread(to_answer_format, answers[index], mask_format) for index in sorted(answers)]


async def _parts(events: AsyncIterator[Event], mask_format: MaskFormat) -> AsyncGenerator[str, None]:
    async for event in events:
        news = event.news
        if isinstance(news, Mask):
            kind, part = "mask", SegmentPart(question=event.index, mask=await asyncio.to_thread(to_format, news, mask_format))
        elif isinstance(news, SegmentResponse):
            kind, part = "answer", SegmentPart(question=event.index, answer=await asyncio.to_thread(to_answer_format, news, mask_format))
        else:
            kind, part = "text", SegmentPart(question=event.index, text=str(news))
        yield server_sent_event(part.model_dump_json(exclude_none=True), kind)


async def _read_body(request: Request) -> _Body:
    kind = media_type(request)
    if kind.startswith("image/"):
        query = request.query_params
        return _Body(await request.body(), _to_fields({name: query.getlist(name) for name in query}))
    if request.query_params:
        raise ApiError(422, "field_unknown", f"The query has fields; with {kind or 'this body'} they belong into the body.")
    if kind == FORM:
        return await _read_form(request)
    if kind == JSON:
        fields = await PARSING.run(parse_json, await request.body(), SegmentRequest)
        return _Body(fields.image, fields)
    raise ApiError(415, "body_format", f"The body is {kind or 'of no stated type'}; send {FORM}, {JSON} or a photo.",
                   headers={"accept-post": f"{FORM}, {JSON}, {IMAGE}"})


async def _read_form(request: Request) -> _Body:
    async with request.form(max_files=1, max_fields=100, max_part_size=1_000_000) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            unknown = any(name not in SegmentForm.model_fields for name in form)
            raise _unknown_field(SegmentForm) if unknown else ApiError(
                422, "image_missing", "The form has no file in its field image.", "image")
        values = {name: form.getlist(name) for name in form if name != "image"}
        if any(isinstance(value, UploadFile) for given in values.values() for value in given):
            raise ApiError(422, "field_invalid", "Only image is a file; the other fields are text.")
        return _Body(await image.read(), _to_fields(values, SegmentForm))


def _to_fields(values: dict[str, list], known: type[BaseModel] = SegmentFields) -> SegmentFields:
    """Fields as texts, each as often as it was given."""
    repeated = next((name for name, given in values.items() if name != "question" and len(given) > 1), None)
    if repeated in SegmentFields.model_fields:
        raise ApiError(422, f"{repeated}_invalid", f"{repeated} is given more than once.", repeated)
    single = {name: given[0] if len(given) == 1 else given for name, given in values.items()}
    try:
        return SegmentFields.model_validate(single)
    except ValidationError as error:
        raise field_problem(error, known) from None


def _unknown_field(model: type[BaseModel]) -> ApiError:
    return ApiError(422, "field_unknown", f"The request has an unknown field; known are {', '.join(model.model_fields)}.")


def _checked_questions(fields: SegmentFields, config: AppConfig) -> tuple[str, ...]:
    questions = [fields.question] if isinstance(fields.question, str) else fields.question
    if len(questions) > config.max_questions:
        detail = f"The request has {len(questions)} questions, at most {config.max_questions} are allowed."
        raise ApiError(422, "question_too_many", detail, "question")
    if not questions:
        raise ApiError(422, "question_missing", "There is no question; ask something about the photo.", "question")
    return tuple(checked_question(question, config) for question in questions)
