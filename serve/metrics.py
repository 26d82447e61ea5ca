"""All metrics of a deployment, by name; Ray exports them to Prometheus with its own. docs/serving.md explains them.

They hold counts, times and slugs: nothing of a photo or a question.
"""

import time
from collections.abc import Container
from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixellm.inference.load import EngineLoad


class MetricSpec(NamedTuple):
    """A metric's class, what it says, and its tags."""

    kind: type
    description: str
    tags: tuple[str, ...] = ()


SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60]
METRICS = {
    "pixellm_serve_requests": MetricSpec(Counter, "requests that were answered", ("route", "status")),
    "pixellm_serve_request_seconds": MetricSpec(Histogram, "from a request's arrival to the end of its answer", ("route",)),
    "pixellm_serve_rejections": MetricSpec(Counter, "requests that got a problem, by its code", ("route", "reason")),
    "pixellm_serve_replays": MetricSpec(Counter, "requests that got the answer of an earlier one with their Idempotency-Key", ("route",)),
    "pixellm_serve_first_mask_seconds": MetricSpec(Histogram, "from a replica's taking a streamed question to its first mask"),
    "pixellm_serve_answer_seconds": MetricSpec(Histogram, "from a replica's taking a question to its whole answer"),
    "pixellm_serve_answers": MetricSpec(Counter, "questions that were answered, by how the answer ended", ("finish_reason",)),
    "pixellm_serve_tokens": MetricSpec(Counter, "tokens of answers"),
    "pixellm_serve_masks": MetricSpec(Counter, "masks of answers"),
    "pixellm_serve_photo_cache_hits": MetricSpec(Counter, "questions whose photo the engine had encoded before"),
    "pixellm_serve_photo_cache_misses": MetricSpec(Counter, "questions whose photo it had not"),
    "pixellm_serve_engine_running": MetricSpec(Gauge, "questions that have a slot of the engine"),
    "pixellm_serve_engine_waiting": MetricSpec(Gauge, "questions that wait for a slot"),
    "pixellm_serve_engine_fill": MetricSpec(Gauge, "share of the slots that are taken, 0 to 1"),
    "pixellm_serve_engine_load": MetricSpec(Gauge, "work at hand in full batches, by which replicas are added and removed"),
}


class Meters:
    """The metrics of one process. Without a running Ray nothing is exported."""

    def __init__(self) -> None:
        self._meters: dict[str, Any] = {}
        for name, spec in METRICS.items():
            options = {"boundaries": SECONDS} if spec.kind is Histogram else {}
            self._meters[name] = spec.kind(name, spec.description, tag_keys=spec.tags, **options)
        self._num_seen = EngineLoad(num_slots=1)

    def count(self, name: str, amount: float = 1, **tags: str) -> None:
        """Adds to a counter; Ray's refuses 0."""
        if amount:
            self._meters[f"pixellm_serve_{name}"].inc(amount, tags=tags)

    def observe(self, name: str, seconds: float, **tags: str) -> None:
        self._meters[f"pixellm_serve_{name}"].observe(seconds, tags=tags)

    def show_load(self, load: EngineLoad) -> None:
        """The engine's gauges, and what is new of its totals."""
        values = {"running": load.num_running, "waiting": load.num_waiting, "fill": load.num_running / load.num_slots,
                  "load": load.num_batches}
        for name, value in values.items():
            self._meters[f"pixellm_serve_engine_{name}"].set(value)
        self.count("photo_cache_hits", load.num_photo_hits - self._num_seen.num_photo_hits)
        self.count("photo_cache_misses", load.num_photo_misses - self._num_seen.num_photo_misses)
        self._num_seen = load


class RequestMeter:
    """Counts requests by route and status, and problems by code; the layer before all others.

    `paths` are those of the app without parameters: a request that a layer answers before it is routed counts under its path.
    """

    def __init__(self, app: ASGIApp, meters: Meters, paths: Container[str] = ()):
        self._app, self._meters, self._paths = app, meters, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = "none"  # of a client that left before its answer began

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_and_see)
        finally:
            route = getattr(scope.get("route"), "path", None) or (scope["path"] if scope["path"] in self._paths else "other")
            self._meters.count("requests", route=route, status=status)
            self._meters.observe("request_seconds", time.monotonic() - scope["state"]["arrived_s"], route=route)
            if reason := scope["state"].get("problem"):
                self._meters.count("rejections", route=route, reason=reason)
            if scope["state"].get("is_replay"):
                self._meters.count("replays", route=route)
