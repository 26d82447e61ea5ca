"""`Idempotency-Key`: a request that comes again with the same key gets the answer that it had, and is computed once.

Each ingress replica remembers for itself, for a while, and answers only, so that what failed can be tried again. The same key with another
request is a mistake of the client, and refused. What is remembered is bounded in number and bytes, and costs a request the same however
much there is.
"""

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.config import AppConfig
from serve.limits import receive as receive_limited
from serve.problems import ApiError, problem_response

HEADER, REPLAYED_HEADER = "idempotency-key", "idempotent-replayed"
KEPT_S = 600.0
MAX_BYTES = 64_000_000  # of remembered answers, with what Python needs for each
MAX_ANSWERS = 20_000
ANSWER_OVERHEAD_BYTES = 2_000  # of one answer without body and headers, measured: 1.5 kB
HEADER_OVERHEAD_BYTES = 150
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(eq=False)
class _Remembered:
    """A request that runs or has run: `answer` is its messages, or None for one that failed or was left."""

    fingerprint: bytes
    started_s: float
    answer: "asyncio.Future[list[Message] | None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    num_bytes: int = 0


class Idempotency:
    """Remembers the answers to POST requests that carry a key, separately for each API key's name."""

    def __init__(self, app: ASGIApp, config: AppConfig, clock: Callable[[], float] = time.monotonic):
        self._app, self._config, self._clock = app, config, clock
        self._running: dict[tuple[str, str], _Remembered] = {}
        self._answered: OrderedDict[tuple[str, str], _Remembered] = OrderedDict()  # the oldest first
        self._num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = Headers(scope=scope).get(HEADER) if scope["type"] == "http" and scope["method"] == "POST" else None
        if key is None:
            return await self._app(scope, receive, send)
        try:
            if not _KEY.fullmatch(key):
                raise ApiError(422, "idempotency_key_invalid", "Idempotency-Key has 1 to 128 visible ASCII characters.")
            body = await receive_limited(Request(scope, receive), self._config, Request.body)
            answer = await self._answer(scope, receive, send, key, body)
        except ApiError as error:
            return await problem_response(scope, error)(scope, receive, send)
        for message in answer:
            await send(message)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, key: str, body: bytes) -> list[Message]:
        """What is to be sent; nothing when this request was the first of its key and has been answered while it ran."""
        place, fingerprint = (scope["state"]["client"], key), _fingerprint(scope, body)
        while (known := self._find(place)) is not None:
            if known.fingerprint != fingerprint:
                raise ApiError(422, "idempotency_key_reused", "Another request had this Idempotency-Key; take a new one for each request.")
            answer = await asyncio.shield(known.answer)
            if answer is not None:
                scope["state"]["is_replay"] = True
                return _replayed(answer)
        mine = self._running[place] = _Remembered(fingerprint, self._clock())
        messages: list[Message] | None = None
        try:
            messages = await self._run(scope, receive, send, body)
        finally:
            del self._running[place]
            if messages is not None:
                self._remember(place, mine, messages)
            mine.answer.set_result(messages)
        return []

    def _find(self, place: tuple[str, str]) -> _Remembered | None:
        known = self._answered.get(place)
        is_fresh = known is not None and self._clock() - known.started_s < KEPT_S
        return self._running.get(place) or (known if is_fresh else None)

    def _remember(self, place: tuple[str, str], mine: _Remembered, messages: list[Message]) -> None:
        """Keep an answer, and forget the oldest beyond the time, the number or the bytes."""
        if place in self._answered:
            self._num_bytes -= self._answered.pop(place).num_bytes
        headers = [header for message in messages for header in message.get("headers", ())]
        mine.num_bytes = (ANSWER_OVERHEAD_BYTES + sum(len(message.get("body", b"")) for message in messages)
                          + sum(len(name) + len(value) + HEADER_OVERHEAD_BYTES for name, value in headers))
        self._answered[place] = mine
        self._num_bytes += mine.num_bytes
        while self._answered:
            oldest, each = next(iter(self._answered.items()))
            is_fresh = self._clock() - each.started_s < KEPT_S
            if is_fresh and self._num_bytes <= MAX_BYTES and len(self._answered) <= MAX_ANSWERS:
                break
            del self._answered[oldest]
            self._num_bytes -= each.num_bytes

    async def _run(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> list[Message] | None:
        """Sends the answer; returns its messages if it is one to be given again."""
        messages: list[Message] = []
        is_read = False

        async def receive_body() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send_and_keep(message: Message) -> None:
            messages.append({**message, "headers": list(message["headers"])} if "headers" in message else message)
            await send(message)

        await self._app(scope, receive_body, send_and_keep)
        is_whole = bool(messages) and messages[0].get("status") == 200 and not messages[-1].get("more_body", False)
        if not is_whole or "problem" in scope["state"]:
            return None
        return [messages[0], {"type": "http.response.body", "body": b"".join(each.get("body", b"") for each in messages[1:])}]


def _fingerprint(scope: Scope, body: bytes) -> bytes:
    kind = Headers(scope=scope).get("content-type", "")
    head = repr((scope["path"], scope.get("query_string", b""), kind)).encode()
    return hashlib.sha256(len(head).to_bytes(8) + head + body).digest()


def _replayed(messages: list[Message]) -> list[Message]:
    start = {**messages[0], "headers": list(messages[0]["headers"])}
    MutableHeaders(scope=start)[REPLAYED_HEADER] = "true"
    return [start, *messages[1:]]
