"""Ray Serve's entry point: `serve.app:build_app` makes the application out of an AppConfig's dict."""

import os
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import AutoscalingPolicy
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from pixellm.errors import ConfigError
from pixellm.settings import build_config
from serve.admission import RETRY_LATER, overloaded
from serve.autoscaling import EngineLoadPolicy
from serve.cluster import check_token
from serve.config import AppConfig
from serve.ingress import build_api
from serve.messages import Ask, Event
from serve.model_config import ModelConfig
from serve.problems import ApiError
from serve.replica import ModelReplica, SegmenterFactory, load_segmenter

# An upgrade starts as many new replicas as there are before it stops an old one, and one whose canary fails never takes its place.
SURGE_PERCENT = 100
ANY_NUMBER = 100_000  # of requests in an ingress replica, which itself says no (serve/admission.py): none waits unseen in Serve's proxy


def build_app(args: dict[str, Any]) -> Application:
    """The application that `args` (an AppConfig's fields) describe. Raises ConfigError for a wrong one, and on a cluster that asks for
    no token: this runs there also where Kubernetes or `serve deploy` hands the arguments over."""
    config = build_config(AppConfig, args, where="application arguments")
    check_token(config, "token" if is_token_auth_enabled() else "disabled")
    if config.tls_certificate and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ConfigError(f"tls_certificate is {config.tls_certificate}, but this cluster serves through HAProxy (platform/serve.sh), to "
                          "which Ray Serve gives no certificate: end TLS in a load balancer before it and leave tls_certificate and "
                          "tls_key out, or start Ray without platform/serve.sh")
    return build_application(config, load_segmenter)


def build_application(config: AppConfig, segmenter_factory: SegmenterFactory) -> Application:
    """`segmenter_factory(config)` is called once in each model replica; tests hand in a fake here, a configuration cannot."""
    models = {each.model_name: _bind_model(each, "model" if each is config else f"model-{each.model_name}", config, segmenter_factory)
              for each in config.models}
    return ray_serve.deployment(
        ray_serve.ingress()(Ingress), name="ingress",
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=ANY_NUMBER,
        max_surge_percent=SURGE_PERCENT,
        graceful_shutdown_timeout_s=config.request_timeout_s,
        ray_actor_options={"num_cpus": config.ingress_num_cpus},
    ).bind(config, models)


def _bind_model(model: ModelConfig, name: str, config: AppConfig, segmenter_factory: SegmenterFactory) -> Application:
    scaling = model.autoscaling
    policy = AutoscalingPolicy(policy_function=EngineLoadPolicy,
                               policy_kwargs={"target_load": scaling.target_load, "num_slots": model.engine.num_slots})
    own = ModelConfig.model_validate({field: getattr(model, field) for field in ModelConfig.model_fields})
    return ray_serve.deployment(
        ModelReplica, name=name,
        autoscaling_config={**scaling.model_dump(exclude={"target_load"}), "policy": policy},
        max_ongoing_requests=model.max_ongoing_requests,
        max_queued_requests=model.max_queued_requests,
        max_surge_percent=SURGE_PERCENT,
        health_check_timeout_s=model.health_check_timeout_s,
        graceful_shutdown_timeout_s=config.request_timeout_s,
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
    ).bind(own, segmenter_factory)


class Ingress:
    """Puts the HTTP face in front of the model replicas."""

    def __init__(self, config: AppConfig, models: dict[str, DeploymentHandle]):
        self._config, self._models = config, models

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self._config, Replicas(self._models), echo_request_id=False)


class Replicas:
    """The replicas of all models as one Model."""

    def __init__(self, models: dict[str, DeploymentHandle]):
        self._whole = {name: handle.answers for name, handle in models.items()}
        self._parts = {name: handle.options(stream=True).ask for name, handle in models.items()}

    async def ask(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """A replica that dies takes its requests with it: another one is asked, once, unless parts were given out already."""
        for _ in range(2):
            has_given = False
            response = (self._parts if ask.parts else self._whole)[ask.model].remote(ask)
            try:
                async for event in response if ask.parts else _each(response):
                    if isinstance(event.news, Exception):
                        raise event.news
                    has_given = True
                    yield event
                return
            except RayActorError:
                if has_given and ask.parts:
                    raise ApiError(503, "model_lost", "The model was lost while it answered; ask again.", headers=RETRY_LATER) from None
            except BackPressureError:
                raise overloaded() from None
            except BaseException:  # the time is up, the client left, or a question failed: leave no work behind
                response.cancel()
                raise
        raise ApiError(503, "model_unavailable", "The model is restarting; try again in a moment.", headers=RETRY_LATER)


async def _each(response: DeploymentResponse) -> AsyncGenerator[Event, None]:
    for event in await response:
        yield event
