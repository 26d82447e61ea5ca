"""Ray Serve's entry point: `serve.app:build_app` makes the application out of an AppConfig's dict."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from pixellm.settings import build_config
from serve.config import AppConfig
from serve.ingress import build_api
from serve.messages import Ask, Event
from serve.problems import ApiError
from serve.replica import ModelReplica, SegmenterFactory, load_segmenter

RETRY_LATER = {"retry-after": "3"}


def build_app(args: dict[str, Any]) -> Application:
    """The application that `args` (an AppConfig's fields) describe. Raises ConfigError for a wrong one."""
    return build_application(build_config(AppConfig, args, where="application arguments"), load_segmenter)


def build_application(config: AppConfig, segmenter_factory: SegmenterFactory) -> Application:
    """`segmenter_factory(config)` is called once in each model replica; tests hand in a fake here, a configuration cannot."""
    scaling = config.autoscaling
    # Enough that the ingress itself says 503, in our form, instead of requests waiting unseen in Serve's proxy.
    ingress_requests = config.max_ongoing_requests * scaling.max_replicas + config.max_queued_requests + 16
    model = ray_serve.deployment(
        ModelReplica, name="model",
        autoscaling_config=scaling.model_dump(),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        health_check_timeout_s=config.health_check_timeout_s,
        graceful_shutdown_timeout_s=config.request_timeout_s,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
    ).bind(config, segmenter_factory)
    return ray_serve.deployment(
        ray_serve.ingress()(Ingress), name="ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=ingress_requests,
        graceful_shutdown_timeout_s=config.request_timeout_s,
        ray_actor_options={"num_cpus": config.ingress_num_cpus},
    ).bind(config, model)


class Ingress:
    """Puts the HTTP face in front of the model replicas."""

    def __init__(self, config: AppConfig, model: DeploymentHandle):
        self._config, self._model = config, model

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._config, Replicas(self._model), echo_request_id=False)


class Replicas:
    """The model replicas as one Model."""

    def __init__(self, model: DeploymentHandle):
        self._ask = model.options(stream=True).ask

    async def ask(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """A replica that dies takes its requests with it: another one is asked, once, unless parts were given out already."""
        for _ in range(2):
            has_given = False
            events = self._ask.remote(ask)
            try:
                async for event in events:
                    if isinstance(event.news, Exception):
                        raise event.news
                    has_given = True
                    yield event
                return
            except RayActorError:
                if has_given and ask.parts:
                    raise ApiError(503, "model_lost", "The model was lost while it answered; ask again.", headers=RETRY_LATER) from None
            except BackPressureError:
                raise ApiError(503, "overloaded", "Too many requests are waiting; try again in a moment.", headers=RETRY_LATER) from None
            except BaseException:  # the time is up, the client left, or a question failed: leave no work behind
                events.cancel()
                raise
        raise ApiError(503, "model_unavailable", "The model is restarting; try again in a moment.", headers=RETRY_LATER)
