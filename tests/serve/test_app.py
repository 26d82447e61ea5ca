import asyncio
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError

from pixellm.errors import ConfigError, InputError
from serve.app import Replicas, build_app
from serve.messages import Event, build_canary
from serve.problems import ApiError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def token_mode(monkeypatch) -> None:
    """As on a cluster that asks for a token; there is no Ray in these tests."""
    monkeypatch.setattr("serve.app.is_token_auth_enabled", lambda: True)


def test_a_cluster_without_a_token_is_refused_unless_the_configuration_allows_it(monkeypatch):
    monkeypatch.setattr("serve.app.is_token_auth_enabled", lambda: False)
    with pytest.raises(ConfigError, match=r"asks for no token .*RAY_AUTH_MODE=token .*allow_cluster_without_token=true"):
        build_app({"model": "models/any"})
    assert isinstance(build_app({"model": "models/any", "allow_cluster_without_token": True}), Application)


def test_the_builder_takes_what_serve_hands_it():
    assert len(inspect.signature(build_app).parameters) == 1  # Serve refuses a builder with more
    assert isinstance(build_app({"model": "models/any"}), Application)


def test_wrong_arguments_are_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="did you mean 'model'"):
        build_app({"modle": "models/any"})


def test_a_certificate_that_haproxy_would_not_use_is_refused(monkeypatch):
    args = {"model": "models/any", "tls_certificate": "/tls/tls.crt", "tls_key": "/tls/tls.key"}
    assert isinstance(build_app(args), Application)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(ConfigError, match=r"tls_certificate is /tls/tls\.crt, but this cluster serves through HAProxy"):
        build_app(args)
    assert isinstance(build_app({"model": "models/any"}), Application)


def test_the_ingress_starts_without_torch_deepspeed_and_peft():
    code = "import sys; sys.modules['deepspeed'] = sys.modules['peft'] = None; import serve.app; assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


class Handle:
    """In place of Serve's handle of a model: each call gives the next of `outcomes`, events with an error to raise among them."""

    def __init__(self, *outcomes):
        self.outcomes, self.num_asked, self.num_cancelled = list(outcomes), 0, 0
        self.ask = self.answers = self

    def options(self, stream):
        return self

    def remote(self, ask):
        self.num_asked += 1
        return Response(self, self.outcomes.pop(0))


class Response:
    def __init__(self, handle, events):
        self.handle, self.events = handle, events

    async def __aiter__(self):
        for event in self.events:
            if isinstance(event, Exception):
                raise event
            yield event

    def __await__(self):
        return self._together().__await__()

    async def _together(self):
        return [event async for event in self]

    def cancel(self):
        self.handle.num_cancelled += 1


def ask_replicas(handle: Handle, parts: bool = False):
    async def run():
        ask = build_canary(1, "m")
        return [event async for event in Replicas({"m": handle}).ask(ask.__class__(**{**ask.__dict__, "parts": parts}))]

    return asyncio.run(run())


@pytest.mark.parametrize("parts", [False, True])
def test_a_lost_replica_is_asked_again_once(parts):
    handle = Handle([RayActorError()], [Event(0, "It")])
    assert ask_replicas(handle, parts) == [Event(0, "It")] and handle.num_asked == 2
    handle = Handle([RayActorError()], [RayActorError()])
    with pytest.raises(ApiError) as refused:
        ask_replicas(handle)
    assert (refused.value.status, refused.value.code, handle.num_asked) == (503, "model_unavailable", 2)


def test_parts_that_were_given_out_are_not_given_again():
    handle = Handle([Event(0, "It"), RayActorError()])
    with pytest.raises(ApiError) as refused:
        ask_replicas(handle, parts=True)
    assert (refused.value.code, handle.num_asked) == ("model_lost", 1) and refused.value.headers["retry-after"]


def test_a_full_queue_is_told_at_once_and_a_refused_question_leaves_no_work_behind():
    handle = Handle([BackPressureError(num_queued_requests=9, max_queued_requests=9)])
    with pytest.raises(ApiError) as refused:
        ask_replicas(handle)
    assert (refused.value.status, refused.value.code, handle.num_asked) == (503, "overloaded", 1) and refused.value.headers["retry-after"]
    handle = Handle([Event(0, InputError("photo_unreadable", "no"))])
    with pytest.raises(InputError):
        ask_replicas(handle)
    assert handle.num_cancelled == 1


def test_every_model_has_replicas_of_its_own_that_keep_to_its_load():
    app = build_app({"model": "models/a", "name": "a", "more_models": [{"model": "models/b", "autoscaling": {"max_replicas": 3}}]})
    models = app._bound_deployment.init_args[1]
    deployments = {name: model._bound_deployment for name, model in models.items()}
    assert {name: each.name for name, each in deployments.items()} == {"a": "model", "b": "model-b"}
    scaling = deployments["b"]._deployment_config.autoscaling_config
    assert scaling.max_replicas == 3 and scaling.policy.policy_function == "serve.autoscaling.EngineLoadPolicy"
    assert all(each._deployment_config.max_surge_percent == 100 for each in [*deployments.values(), app._bound_deployment])
