"""What a request may hold: bytes while they come in, time, the photo, the words. Blocking work is done in threads.

`/healthz` therefore answers at once at any time.
"""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Message

from pixellm.errors import DeadlineError
from pixellm.inference.config import AnswerOptions
from pixellm.photo_headers import read_header
from pixellm.photos import load_photo
from serve.config import AppConfig
from serve.fetch import fetch_photo
from serve.messages import Ask, Event, Model
from serve.model_config import ModelConfig
from serve.pools import DECODING, PARSING
from serve.problems import ApiError

JSON = "application/json"
# Objects, strings and commas of a JSON body, counted by characters that neither base64 nor COCO's RLE has. pydantic builds an error of 2 kB
# for each value that is wrong, and Python parses a million keys in a second in which nothing else runs; numbers in a list cost a tenth.
MAX_JSON_OBJECTS, MAX_JSON_STRINGS, MAX_JSON_ITEMS = 20_000, 40_000, 20_000
_URL_SAFE, _WHITE_SPACE = bytes.maketrans(b"-_", b"+/"), b" \t\r\n"
TIMEOUT_HEADER = "x-answer-timeout-s"
T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def receive(request: Request, config: AppConfig, read: Callable[[Request], Awaitable[T]]) -> T:
    """`read` of the request, whose body must stay within the deployment's bytes and time."""
    try:
        async with asyncio.timeout(config.request_timeout_s):
            return await read(_limited(request, config.max_body_bytes))
    except TimeoutError:
        raise ApiError(408, "request_timeout", f"The body did not arrive within {config.request_timeout_s:g} s.") from None
    except ClientDisconnect:
        raise ApiError(400, "body_incomplete", "The connection closed before the body was complete.") from None


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


async def read_json(request: Request, config: AppConfig, model: type[ModelT], max_items: int = MAX_JSON_ITEMS) -> ModelT:
    """The body as a `model`; ApiError for one that is too large, too slow, not JSON, or wrong."""
    if media_type(request) != JSON:
        raise ApiError(415, "body_format", f"The body is {media_type(request) or 'of no stated type'}; send {JSON}.")
    return await PARSING.run(parse_json, await receive(request, config, Request.body), model, max_items)


def parse_json(data: bytes, model: type[ModelT], max_items: int = MAX_JSON_ITEMS) -> ModelT:
    """Raises ApiError that says what is wrong with the first wrong field, and `json_too_complex` before anything is built."""
    for what, num, most in (("objects", data.count(b"{"), MAX_JSON_OBJECTS), ("strings", data.count(b'"') // 2, MAX_JSON_STRINGS),
                            ("values", data.count(b","), max_items)):
        if num > most:
            raise ApiError(413, "json_too_complex", f"The JSON has about {num:,} {what}, at most {most:,} are allowed.")
    try:
        return model.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise field_problem(error, model) from None


def field_problem(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """The first problem only, and never the value found: it can be a photo."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    field = str(problem["loc"][0]) if problem["loc"] else None
    if problem["type"] == "json_invalid":
        return ApiError(400, "json_invalid", f"The body is not valid JSON: {problem['msg'].removeprefix('Invalid JSON: ')}.")
    if problem["type"] == "extra_forbidden":
        return ApiError(422, "field_unknown", f"The request has an unknown field; known are {', '.join(model.model_fields)}.")
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        return ApiError(422, f"{field}_missing", f"The field {field} is missing.", field)
    return ApiError(422, f"{field}_invalid" if field else "body_invalid", f"{field or 'body'}: {problem['msg']}.", field)


def decode_base64(encoded: str, param: str = "image") -> bytes:
    """A photo's bytes from base64 (also the URL-safe kind, unpadded, or with white space) or a `data:` URL.

    Raises ApiError `image_base64`, and `image_url` for a URL that would be fetched.
    """
    if encoded[:5].lower() == "data:":
        header, _, encoded = encoded.partition(",")
        if not header.lower().endswith(";base64"):
            raise ApiError(422, "image_base64", f"The data: URL of {param} is not in base64.", param)
        encoded = unquote(encoded) if "%" in encoded else encoded
    elif encoded[:8].lower().startswith(("http://", "https://")):
        raise ApiError(422, "image_url", f"{param} is a URL; this server fetches none. Send the photo as base64 or as a data: URL.", param)
    try:
        data = encoded.encode("ascii").translate(_URL_SAFE, _WHITE_SPACE)
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ValueError:  # UnicodeEncodeError and binascii.Error are
        raise ApiError(422, "image_base64", f"{param} is not valid base64.", param) from None


async def read_image(given: str, config: AppConfig, param: str = "image") -> bytes:
    """A photo's bytes from base64, a `data:` URL or, where the deployment fetches, an https URL. Raises ApiError, as its parts do."""
    if config.fetch and given[:8].lower().startswith(("http://", "https://")):
        return await fetch_photo(given, config.fetch, config.max_body_bytes, param)
    return await PARSING.run(decode_base64, given, param)


async def read_photo(data: bytes, config: AppConfig, request: Request) -> np.ndarray:
    """uint8 (H, W, 3), RGB, upright. Raises what `load_photo` raises, and the 503 of a server that holds photos enough."""
    height, width = (await PARSING.run(read_header, data)).stored_hw
    if height * width <= config.max_pixels:  # else `load_photo` refuses it
        request.state.photo_place.enter(height * width)
    return await DECODING.run(lambda: np.asarray(load_photo(data, config.photo_limits)))


def checked_question(question: str, config: AppConfig, param: str = "question") -> str:
    """`question` without white space around it."""
    question = question.strip()
    if not question:
        raise ApiError(422, "question_missing", "There is no question; ask something about the photo.", param)
    if len(question) > config.max_question_chars:
        detail = f"The question has {len(question)} characters, at most {config.max_question_chars} are allowed."
        raise ApiError(422, "question_too_long", detail, param)
    return question


def checked_model(name: str | None, config: AppConfig) -> ModelConfig:
    """The model of a name, or the first where none is given."""
    found = next((model for model in config.models if name in (None, model.model_name)), None)
    if found is None:
        names = ", ".join(model.model_name for model in config.models)
        raise ApiError(404, "model_not_found", f"There is no such model here, only {names}.", "model")
    return found


def checked_limit(max_new_tokens: int | None, model: ModelConfig, param: str = "max_new_tokens") -> int:
    """`max_new_tokens`, or the model's limit where none is given."""
    if max_new_tokens is None:
        return model.max_new_tokens
    if not 1 <= max_new_tokens <= model.max_new_tokens:
        raise ApiError(422, f"{param}_invalid", f"{param} is {max_new_tokens}, expected 1 to {model.max_new_tokens}.", param)
    return max_new_tokens


def answer_options(request: Request, config: AppConfig, **chosen: Any) -> AnswerOptions:
    """How to answer a request: by `chosen`, in the turn of its API key, within the deployment's limits and the time that it has left.

    `x-answer-timeout-s` says how long the client waits from the request's arrival, if that is shorter than `request_timeout_s`.
    """
    timeout_s = config.request_timeout_s
    given = request.headers.get(TIMEOUT_HEADER)
    if given is not None:
        try:
            wished_s = float(given)
        except ValueError:
            wished_s = 0.0
        if not 0 < wished_s < float("inf"):
            raise ApiError(422, "timeout_invalid", f"{TIMEOUT_HEADER} is not a number of seconds above 0.")
        timeout_s = min(timeout_s, wished_s - (time.monotonic() - request.state.arrived_s))
        if timeout_s <= 0:
            raise DeadlineError(f"the {wished_s:g} s of {TIMEOUT_HEADER} were over before the question was asked")
    return AnswerOptions(timeout_s=timeout_s, client=request.state.client, max_targets=config.max_targets, **chosen)


async def in_time(model: Model, ask: Ask) -> AsyncGenerator[Event, None]:
    """The events of `ask`, closed at the end. Raises DeadlineError when the last one has not come within the time of its options."""
    timeout_s, events = ask.options.timeout_s, model.ask(ask)
    deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    try:
        while True:
            try:
                async with asyncio.timeout_at(deadline_s):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise DeadlineError(f"no answer within {timeout_s:.3g} s; ask for fewer tokens") from None
            yield event
    finally:
        await events.aclose()
