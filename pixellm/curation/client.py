"""Asks a model over HTTP, many requests at a time, each until it is answered, and none that was answered before.

An answer is *paid* when it arrived whole. It is written to the cache before anybody gets it, so the same request is never sent again, by
no client of the same cache. Two cases cannot be known from here: an answer that is lost on its way may have been billed, and so may one
that arrives while the process is killed. Each request carries its key as `Idempotency-Key`, for endpoints that know the header.
"""

import asyncio
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from pydantic import ValidationError

from pixellm.curation.budget import BudgetCall, Grant
from pixellm.curation.chat import ChatRequest, Completion, read_completion
from pixellm.curation.config import EndpointConfig
from pixellm.errors import ConfigError, PixelLMError, ServerError, SpendingCapError, StorageError
from pixellm.storage import exists, join_uri, read_bytes, write_bytes

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
PASSING_STATUSES = {408, 409, 425, 429}  # and all from 500 on
FATAL_STATUSES = {401, 403, 404}  # the key or the URL is wrong: no other request would fare better
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class _Failure:
    """`is_unsure`: the endpoint may have billed it. `is_passing`: the same request may succeed later."""

    error: ServerError
    is_unsure: bool = False
    is_passing: bool = True
    pause_s: float = 0.0


class ChatClient:
    """Of one endpoint, for one event loop: `async with ChatClient(…) as client`. `name` is what `budget` calls the endpoint.

    `max_concurrency` is this client's share of the endpoint's. Raises ConfigError where the key's environment variable is not set.
    """

    def __init__(self, endpoint: EndpointConfig, name: str, budget: BudgetCall, cache: str, max_concurrency: int | None = None):
        self._endpoint, self._name, self._budget, self._cache = endpoint, name, budget, cache
        self._api_key = read_api_key(endpoint)
        self._slots = asyncio.Semaphore(max_concurrency or endpoint.max_concurrency)
        self._pending: dict[str, asyncio.Task[Completion]] = {}
        self._fatal: PixelLMError | None = None  # after it nothing is asked any more
        headers = {"authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        url = urlsplit(endpoint.url)
        proxy = None if proxy_bypass(url.netloc) else getproxies().get(url.scheme)  # `trust_env` would also take a login from ~/.netrc
        self._http = aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0), proxy=proxy,
                                           timeout=aiohttp.ClientTimeout(endpoint.request_timeout_s))

    async def __aenter__(self) -> "ChatClient":
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.close()

    async def complete(self, request: ChatRequest) -> Completion:
        """The answer, from the cache or paid; the same request twice at a time is one.

        Raises SpendingCapError, StorageError (the cache cannot be read or written), and ServerError: `request_refused` (only this request
        is wrong), `endpoint_refused` (every request would be), `endpoint_failed` (no answer within `total_timeout_s`). After the first two
        and `endpoint_refused` nothing is asked any more: all that is still to be sent raises the same.
        """
        key = request.key(self._endpoint)
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(self._complete(request, key))
            self._pending[key].add_done_callback(lambda _: self._pending.pop(key))
        return await asyncio.shield(self._pending[key])

    async def _complete(self, request: ChatRequest, key: str) -> Completion:
        uri = join_uri(self._cache, key[:2], f"{key}.json")
        async with self._slots:
            if self._fatal:
                raise self._fatal
            try:
                completion = await asyncio.to_thread(_read_cached, uri)
                if completion:
                    await self._budget("count_cached", request.stage)
                    return completion
                completion = await self._ask(request, key)
                await asyncio.to_thread(write_bytes, uri, completion.model_dump_json().encode())
                return completion
            except (SpendingCapError, StorageError, ServerError) as error:
                if not isinstance(error, ServerError) or error.code == "endpoint_refused":
                    self._fatal = error
                raise

    async def _ask(self, request: ChatRequest, key: str) -> Completion:
        """Attempts until there is an answer."""
        body = await asyncio.to_thread(request.body, self._endpoint)
        deadline_s, longest_s = time.monotonic() + self._endpoint.total_timeout_s, FIRST_PAUSE_S
        while True:
            began_s = time.monotonic()
            ticket = await self._reserve(request)
            deadline_s += time.monotonic() - began_s
            found = await self._send(request, body, key)
            if isinstance(found, Completion):
                await self._budget("settle", ticket, "paid", found.input_tokens, found.output_tokens)
                return found
            await self._budget("settle", ticket, "unsure" if found.is_unsure else "refused", 0, 0, found.pause_s)
            pause_s = found.pause_s + longest_s * random.uniform(0.5, 1)
            if not found.is_passing or time.monotonic() + pause_s > deadline_s:
                raise found.error
            await asyncio.sleep(pause_s)
            longest_s = min(2 * longest_s, LONGEST_PAUSE_S)

    async def _reserve(self, request: ChatRequest) -> int:
        """Waits until an attempt may be made. Returns its ticket."""
        while True:
            grant: Grant = await self._budget("reserve", self._name, request.stage, request.input_tokens(self._endpoint))
            if grant.refusal:
                raise SpendingCapError(grant.refusal)
            await asyncio.sleep(grant.wait_s)
            if grant.ticket is not None:
                return grant.ticket

    async def _send(self, request: ChatRequest, body: Mapping, key: str) -> Completion | _Failure:
        """One attempt."""
        url = f"{self._endpoint.url.rstrip('/')}/chat/completions"
        try:
            async with self._http.post(url, json=body, headers={"idempotency-key": key}, allow_redirects=False) as response:
                content = await response.read()
        except TimeoutError:
            return _Failure(self._error(0, "endpoint_failed", f"no answer within {self._endpoint.request_timeout_s:g} s"), is_unsure=True)
        except aiohttp.ClientConnectorError as error:
            return _Failure(self._error(0, "endpoint_failed", f"cannot be reached: {error}"))
        except aiohttp.ClientError as error:
            return _Failure(self._error(0, "endpoint_failed", f"broke off: {error or type(error).__name__}"), is_unsure=True)
        status = response.status
        if status == 200:
            try:
                return read_completion(content, request, self._endpoint)
            except ValueError:
                what = "answered what is no chat completion"
                return _Failure(self._error(status, "endpoint_failed", what, content), is_unsure=True)
        is_passing = status in PASSING_STATUSES or status >= 500
        code = "endpoint_failed" if is_passing else "endpoint_refused" if status in FATAL_STATUSES else "request_refused"
        refusal = self._error(status, code, f"answered {status}", content)
        return _Failure(refusal, is_passing=is_passing, pause_s=retry_after_s(response.headers.get("retry-after", "")))

    def _error(self, status: int, code: str, detail: str, content: bytes = b"") -> ServerError:
        """Endpoints quote what they were sent, also the key: it is taken out."""
        answer = content.decode(errors="replace")
        if self._api_key:
            answer = answer.replace(self._api_key, "***")
        return ServerError(status, code, f"{self._endpoint.model} at {self._endpoint.url} {detail}"
                                         + (f": {answer[:SHOWN_CHARACTERS]}" if answer else ""))


def read_api_key(endpoint: EndpointConfig) -> str | None:
    """The key out of the environment, None where the endpoint needs none. Raises ConfigError where it is not set."""
    key = os.environ.get(endpoint.api_key_env) if endpoint.api_key_env else None
    if endpoint.api_key_env and not key:
        raise ConfigError(f"the environment variable {endpoint.api_key_env} holds no key for {endpoint.url}; set it on all nodes before "
                          "Ray starts there, or give api_key_env=null for an endpoint that needs none")
    return key


def retry_after_s(header: str) -> float:
    """Seconds of a `Retry-After`, which is a number of them or a date; 0 for what is neither."""
    try:
        return max(0.0, float(header) if header[:1].isdigit() else (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


def _read_cached(uri: str) -> Completion | None:
    if not exists(uri):
        return None
    try:
        return Completion.model_validate_json(read_bytes(uri))
    except ValidationError:
        raise StorageError(f"{uri} is not an answer that this program wrote; delete it to ask again") from None
