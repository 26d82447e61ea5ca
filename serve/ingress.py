"""The HTTP face: routes, the two forms of a request, limits. Knows no Ray: whoever answers is handed in.

What blocks (base64, JSON, photo decoding) runs in threads, so that `/healthz` answers at once at any time.
"""

import asyncio
import base64
import binascii
from contextlib import aclosing
from typing import Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ValidationError
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message

from pixellm.errors import DeadlineError
from pixellm.inference.photos import load_photo
from serve.config import AppConfig
from serve.messages import Ask, Model
from serve.problems import MEDIA_TYPE, ApiError, RequestGuard, install_error_handlers
from serve.schemas import Health, Problem, SegmentForm, SegmentRequest, SegmentResponse

FORM, JSON = "multipart/form-data", "application/json"
_PROBLEMS = {
    400: "The body is not valid JSON, or not a valid form.",
    408: "The body did not arrive in time.",
    413: "The body has too many bytes, or the photo too many pixels.",
    415: "The body is neither a form nor JSON, or the image is not JPEG, PNG or WebP.",
    422: "A field is missing or cannot be used, the photo is damaged, or its base64 is.",
    500: "The server failed.",
    503: "Too many requests are waiting, or the model restarts. Try again after `Retry-After` seconds.",
    504: "The answer took too long.",
}


class _Body(NamedTuple):
    """A request's fields, before the photo is decoded and the limits are checked."""

    image: bytes
    question: str
    max_new_tokens: int | None


def build_api(config: AppConfig, model: Model, echo_request_id: bool = True) -> FastAPI:
    """The ASGI app that validates requests within `config`'s limits and answers them with `model`."""
    api = FastAPI(title="PixelLM", summary="Ask about a photo; get a sentence, and a mask for each thing it names.")
    api.add_middleware(RequestGuard, echo_id=echo_request_id)
    install_error_handlers(api)

    @api.get("/healthz", summary="Whether this server answers")
    async def healthz() -> Health:
        return Health(model=config.model_name)

    @api.post("/v1/segment", summary="Ask a question about a photo", responses=_problem_responses(), openapi_extra=_request_body())
    async def segment(request: Request) -> SegmentResponse:
        try:
            async with asyncio.timeout(config.request_timeout_s):
                body = await _read_body(_limited(request, config.max_body_bytes), config)
        except TimeoutError:
            raise ApiError(408, "request_timeout", f"The body did not arrive within {config.request_timeout_s:g} s.") from None
        except ClientDisconnect:
            raise ApiError(400, "body_incomplete", "The connection closed before the body was complete.") from None
        question, max_new_tokens = _checked_question(body.question, config), _checked_limit(body.max_new_tokens, config)
        pixels = await asyncio.to_thread(lambda: np.asarray(load_photo(body.image, max_pixels=config.max_pixels)))
        ask = Ask(pixels, (question,), max_new_tokens, config.request_timeout_s)
        try:
            async with asyncio.timeout(config.request_timeout_s), aclosing(model.ask(ask)) as events:
                return [event.news async for event in events][-1]
        except TimeoutError:
            raise DeadlineError(f"no answer within {config.request_timeout_s:g} s; ask for fewer tokens") from None

    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


def _limited(request: Request, max_bytes: int) -> Request:
    """`request`, whose body raises ApiError as soon as more than `max_bytes` have come in, or before that if it says so itself."""
    error = ApiError(413, "body_too_large", f"The body is larger than {max_bytes:,} bytes; send a smaller photo.",
                     headers={"connection": "close"})
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise error
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise error
        return message

    return Request(request.scope, receive)


async def _read_body(request: Request, config: AppConfig) -> _Body:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == FORM:
        return await _read_form(request)
    if media_type == JSON:
        return await asyncio.to_thread(_parse_json, await request.body())
    raise ApiError(415, "body_format", f"The body is {media_type or 'of no stated type'}; send {FORM} or {JSON}.",
                   headers={"accept-post": f"{FORM}, {JSON}"})


async def _read_form(request: Request) -> _Body:
    async with request.form(max_files=1, max_fields=len(SegmentForm.model_fields), max_part_size=1_000_000) as form:
        for name in form:
            if name not in SegmentForm.model_fields:
                raise ApiError(422, "field_unknown", f"The form has an unknown field; known are {', '.join(SegmentForm.model_fields)}.")
        image, question, limit = form.get("image"), form.get("question"), form.get("max_new_tokens")
        if not isinstance(image, UploadFile):
            raise ApiError(422, "image_missing", "The form has no file in its field image.", "image")
        if isinstance(question, UploadFile) or isinstance(limit, UploadFile):
            raise ApiError(422, "field_invalid", "question and max_new_tokens are text fields, not files.")
        try:
            max_new_tokens = int(limit) if limit else None
        except ValueError:
            raise ApiError(422, "max_new_tokens_invalid", "max_new_tokens is not a whole number.", "max_new_tokens") from None
        return _Body(await image.read(), question or "", max_new_tokens)


def _parse_json(data: bytes) -> _Body:
    try:
        body = SegmentRequest.model_validate_json(data)
    except ValidationError as error:
        raise _json_problem(error) from None
    encoded = body.image
    if encoded.startswith("data:"):
        header, _, encoded = encoded.partition(",")
        if not header.endswith(";base64"):
            raise ApiError(422, "image_base64", "The data: URL of image is not in base64.", "image")
    try:
        image = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(422, "image_base64", "image is not valid base64.", "image") from None
    return _Body(image, body.question, body.max_new_tokens)


def _json_problem(error: ValidationError) -> ApiError:
    """The first problem only, and never the value found: it can be a photo."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    field = str(problem["loc"][0]) if problem["loc"] else None
    if problem["type"] == "json_invalid":
        return ApiError(400, "json_invalid", f"The body is not valid JSON: {problem['msg'].removeprefix('Invalid JSON: ')}.")
    if problem["type"] == "extra_forbidden":
        return ApiError(422, "field_unknown", f"The body has an unknown field; known are {', '.join(SegmentRequest.model_fields)}.")
    if problem["type"] == "missing":
        return ApiError(422, f"{field}_missing", f"The field {field} is missing.", field)
    return ApiError(422, f"{field}_invalid" if field else "body_invalid", f"{field or 'body'}: {problem['msg']}.", field)


def _checked_question(question: str, config: AppConfig) -> str:
    question = question.strip()
    if not question:
        raise ApiError(422, "question_missing", "There is no question; ask something about the photo.", "question")
    if len(question) > config.max_question_chars:
        detail = f"The question has {len(question)} characters, at most {config.max_question_chars} are allowed."
        raise ApiError(422, "question_too_long", detail, "question")
    return question


def _checked_limit(max_new_tokens: int | None, config: AppConfig) -> int:
    if max_new_tokens is None:
        return config.max_new_tokens
    if not 1 <= max_new_tokens <= config.max_new_tokens:
        raise ApiError(422, "max_new_tokens_invalid", f"max_new_tokens is {max_new_tokens}, expected 1 to {config.max_new_tokens}.",
                       "max_new_tokens")
    return max_new_tokens


def _ref(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _problem_responses() -> dict[int | str, dict[str, Any]]:
    return {status: {"description": text, "content": {MEDIA_TYPE: _ref("Problem")}} for status, text in _PROBLEMS.items()}


def _request_body() -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {FORM: _ref("SegmentForm"), JSON: _ref("SegmentRequest")}}}


def _openapi(api: FastAPI) -> dict[str, Any]:
    """FastAPI's document, plus the models that routes read and write by hand."""
    if not api.openapi_schema:
        document = get_openapi(title=api.title, version=api.version, summary=api.summary, routes=api.routes)
        by_hand: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in (SegmentRequest, SegmentForm, Problem)]
        _, schemas = models_json_schema(by_hand, ref_template="#/components/schemas/{model}")
        document["components"]["schemas"].update(schemas["$defs"])
        api.openapi_schema = document
    return api.openapi_schema
