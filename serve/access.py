"""Who comes in: a layer before all routes that asks for an API key and holds each key to its limits. Nothing of a key is ever logged.

Without keys in the deployment only this machine is let in, whatever address the server listens on.
"""

import base64
import binascii
import ipaddress
import math
import time
from collections.abc import Callable
from datetime import datetime

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.config import AppConfig
from serve.keys import ApiKey, find_key, utc_now
from serve.problems import ApiError, problem_response

# For those who start and stop the server, and the page's own files, in which people enter their key.
OPEN_PATHS = frozenset({"/livez", "/healthz", "/readyz", "/"})
OPEN_PREFIX = "/web/"
BROWSED_PATHS = frozenset({"/docs", "/openapi.json"})  # a browser then asks its user for the key
CHALLENGE = {"www-authenticate": "Bearer"}
BROWSER_CHALLENGE = {"www-authenticate": 'Basic realm="any name, and the API key as the password"'}


class TokenBucket:
    """Holds `burst` requests and gains `per_minute` of them each minute (a token bucket)."""

    def __init__(self, per_minute: float, burst: int, now_s: float):
        self._per_second, self._burst = per_minute / 60, burst
        self._num_left, self._at_s = float(burst), now_s

    def take(self, now_s: float) -> float:
        """Takes one and returns 0, or takes none and returns the seconds until there is one."""
        self._num_left = min(self._burst, self._num_left + (now_s - self._at_s) * self._per_second)
        self._at_s = now_s
        if self._num_left < 1:
            return (1 - self._num_left) / self._per_second
        self._num_left -= 1
        return 0.0


class KeyGuard:
    """Lets a request pass with its key's name in `request.state.client`, or answers 401, 403 or 429.

    A key comes as `Authorization: Bearer KEY`, as the password of `Authorization: Basic`, or as `X-API-Key: KEY`.
    """

    def __init__(self, app: ASGIApp, config: AppConfig, clock: Callable[[], float] = time.monotonic,
                 now: Callable[[], datetime] = utc_now):
        self._app, self._keys, self._clock, self._now = app, config.api_keys, clock, now
        self._buckets = {key.name: TokenBucket(key.requests_per_minute, key.burst, clock())
                         for key in self._keys if key.requests_per_minute}
        self._num_running = {key.name: 0 for key in self._keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["state"]["client"] = ""
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_PREFIX):
            return await self._app(scope, receive, send)
        key = None
        try:
            if self._keys:
                key = self._check_key(scope)
                self._check_limits(key)
            else:
                _check_address(scope)
        except ApiError as error:
            return await problem_response(scope, error)(scope, receive, send)
        if key is None:
            return await self._app(scope, receive, send)
        scope["state"]["client"] = key.name
        self._num_running[key.name] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_running[key.name] -= 1

    def _check_key(self, scope: Scope) -> ApiKey:
        given = _given_key(Headers(scope=scope))
        challenge = BROWSER_CHALLENGE if scope["path"] in BROWSED_PATHS else CHALLENGE
        if given is None:
            raise ApiError(401, "key_missing", "This server asks for an API key, as Authorization: Bearer KEY.", headers=challenge)
        key = find_key(given, self._keys)
        if key is None:
            raise ApiError(401, "key_wrong", "The API key is not one of this server's.", headers=challenge)
        if key.is_expired(self._now()):
            raise ApiError(401, "key_expired", f"The API key {key.name} has expired; ask for a new one.", headers=challenge)
        return key

    def _check_limits(self, key: ApiKey) -> None:
        if key.max_concurrent is not None and self._num_running[key.name] >= key.max_concurrent:
            detail = f"The API key {key.name} has {key.max_concurrent} requests on their way, which is as many as it may."
            raise ApiError(429, "key_busy", detail, headers={"retry-after": "1"})
        bucket = self._buckets.get(key.name)
        wait_s = bucket.take(self._clock()) if bucket else 0.0
        if wait_s:
            detail = f"The API key {key.name} may ask {key.requests_per_minute:g} times a minute; wait {wait_s:.1f} s."
            raise ApiError(429, "key_rate", detail, headers={"retry-after": str(math.ceil(wait_s))})


def _check_address(scope: Scope) -> None:
    host = (scope.get("client") or ("", 0))[0]
    try:
        is_here = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        raise ApiError(403, "key_not_configured", "This server has no API keys and therefore answers to its own machine only.")


def _given_key(headers: Headers) -> str | None:
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return headers.get("x-api-key")
