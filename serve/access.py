"""The layer before all routes that asks for an API key and holds each key to its limits. Nothing of a key is ever logged.

Without keys only this machine is let in, whatever address the server listens on, and only by its own name: a page of the web that a
browser on this machine shows can post here too, and can let its name resolve to this machine (DNS rebinding).
"""

import base64
import binascii
import ipaddress
import math
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.config import AppConfig
from serve.keys import ApiKey, find_key, utc_now
from serve.problems import ApiError, problem_response

# Health checks, and the page's own files, in which people enter their key: read only, and without a place of the admission.
OPEN_PATHS = frozenset({"/livez", "/healthz", "/readyz", "/"})
OPEN_PREFIX = "/web/"
OPEN_METHODS = ("GET", "HEAD")
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
        self._app, self._config, self._keys, self._clock, self._now = app, config, config.api_keys, clock, now
        self._buckets = {key.name: TokenBucket(key.requests_per_minute, key.burst, clock())
                         for key in self._keys if key.requests_per_minute}
        self._num_running = {key.name: 0 for key in self._keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["state"]["client"] = ""
        key = None
        try:
            if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_PREFIX):
                _check_method(scope)
            elif self._keys:
                key = self._check_key(scope)
                self._check_limits(key)
            else:
                _check_address(scope)
                _check_names(scope, self._config)
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


def _check_method(scope: Scope) -> None:
    if scope["method"] not in OPEN_METHODS:
        raise ApiError(405, "method_not_allowed", f"{scope['path']} takes {' and '.join(OPEN_METHODS)}.",
                       headers={"allow": ", ".join(OPEN_METHODS), "connection": "close"})


def _check_names(scope: Scope, config: AppConfig) -> None:
    """A browser sends the name that its user asked for as Host, and the page that asks as Origin."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not (_is_own_name(host) or _host_name(host) in config.allowed_hosts):
        raise ApiError(403, "host_not_allowed", f"This server has no API keys and answers to the names of its own machine only, found Host "
                       f"{host!r}; add it to allowed_hosts, or make a key with `pixellm key NAME`.")
    origin = headers.get("origin")
    if origin is not None and origin not in config.cors_origins and not _is_of_host(origin, host):
        raise ApiError(403, "origin_not_allowed", f"A page of {origin!r} may not ask this server; add it to cors_origins.")


def _host_name(host: str) -> str:
    """`[::1]:8000` to `::1`, `localhost:8000` to `localhost`."""
    try:
        return "" if "@" in host else urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_of_host(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _is_own_name(host: str) -> bool:
    name = _host_name(host)
    try:
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


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
