"""Several models behind one endpoint, chosen by name; what is measured of them; and how long a client is willing to wait."""

import asyncio
from pathlib import Path

import httpx
import pytest

from pixellm.errors import ConfigError
from pixellm.inference.load import EngineLoad
from pixellm.settings import build_config
from serve import metrics
from serve.config import AppConfig
from serve.ingress import build_api
from serve.keys import ApiKey
from serve.metrics import METRICS, Meters
from serve.model_config import AutoscalingConfig, ModelConfig
from serve.replica import ModelReplica
from tests.serve.doubles import RuleModel, RuleSegmenter
from tests.serve.test_access import session
from tests.serve.test_chat import PHOTO, user
from tests.serve.test_ingress import CONFIG, Raising, as_form, as_json, assert_problem, call, photo_bytes
from tests.serve.test_replica import ask as build_ask

PNG = photo_bytes()
TWO = CONFIG.model_copy(update={"more_models": (ModelConfig(model="s3://models/big/7", name="big", max_new_tokens=99),)})


def test_a_request_names_its_model_or_gets_the_first():
    model = RuleModel()
    for body in (as_form(PNG), as_form(PNG, model="big"), as_json(PNG, model="big", max_new_tokens=99), as_form(PNG, model="test")):
        assert call("POST", "/v1/segment", model, TWO, **body).status_code == 200
    chat = {"json": {"model": "big", "messages": [user("Which?", PHOTO)]}}
    assert call("POST", "/v1/chat/completions", model, TWO, **chat).json()["model"] == "big"
    assert [(ask.model, ask.max_new_tokens) for ask in model.asks] == [("test", 64), ("big", 99), ("big", 99), ("test", 64), ("big", 99)]


def test_models_that_are_not_there():
    assert_problem(call("POST", "/v1/segment", None, TWO, **as_form(PNG, model="small")), 404, "model_not_found")
    assert_problem(call("POST", "/v1/segment", None, TWO, **as_form(PNG, max_new_tokens="99")), 422, "max_new_tokens_invalid")
    assert [card["id"] for card in call("GET", "/v1/models", config=TWO).json()["data"]] == ["test", "big"]


def test_two_models_need_two_names_and_one_keeps_its_name_over_versions():
    with pytest.raises(ConfigError, match="more than one model is called tiny"):
        build_config(AppConfig, {"model": "a/tiny", "more_models": [{"model": "b/tiny"}]})
    assert [ModelConfig(model=f"s3://models/{version}", name="shapes").model_name for version in (1, 2)] == ["shapes"] * 2


def test_readiness_asks_every_model_that_is_awake():
    resting = ModelConfig(model="rare", autoscaling=AutoscalingConfig(min_replicas=0))
    model = RuleModel()
    config = TWO.model_copy(update={"more_models": (*TWO.more_models, resting)})
    assert session(lambda http: http.get("/readyz"), model, config).status_code == 200
    assert sorted(ask.model for ask in model.asks) == ["big", "test"]


@pytest.mark.parametrize("given, status, code", [
    ("0.05", 504, "answer_timeout"), ("1e-9", 504, "answer_timeout"),
    *((odd, 422, "timeout_invalid") for odd in ("0", "-1", "soon", "inf", "nan"))])
def test_a_client_says_how_long_it_waits(given, status, code):
    model = RuleModel()
    response = call("POST", "/v1/segment", model, headers={"x-answer-timeout-s": given}, **as_form(PNG, "wait"))
    assert_problem(response, status, code)
    assert model.segmenter.num_running == 0


def test_a_client_that_waits_longer_than_the_server_waits_no_longer():
    model = RuleModel()
    for given in ("2", "3600"):
        call("POST", "/v1/segment", model, headers={"x-answer-timeout-s": given}, **as_form(PNG))
    short, long = (ask.options.timeout_s for ask in model.asks)
    assert 0 < short <= 2 and long == CONFIG.request_timeout_s


class Recorder:
    """In place of Ray's metric classes: what was told to each metric."""

    told: dict[str, list]

    def __init__(self, name, description="", **options):
        self._told = Recorder.told.setdefault(name, [])

    def inc(self, value=1, tags=None):
        self._told.append((value, tags))

    observe = set = inc


@pytest.fixture
def told(monkeypatch):
    """Name of a metric -> its (value, tags)."""
    Recorder.told = {}
    monkeypatch.setattr(metrics, "METRICS", {name: spec._replace(kind=Recorder) for name, spec in METRICS.items()})
    return Recorder.told


def test_requests_and_rejections_are_counted_by_route_status_and_reason(told):
    call("POST", "/v1/segment", **as_form(PNG))
    call("POST", "/v1/segment", **as_form(b"text"))
    call("GET", "/v1/models/anything")
    call("GET", "/v1/secret/path")
    call("POST", "/v1/segment", Raising(RuntimeError("zanzibar")), **as_form(PNG, "zanzibar"))
    routes = [(tags["route"], tags["status"]) for _, tags in told["pixellm_serve_requests"]]
    assert routes == [("/v1/segment", "200"), ("/v1/segment", "415"), ("/v1/models/{name:path}", "404"), ("other", "404"),
                      ("/v1/segment", "500")]
    assert [tags["reason"] for _, tags in told["pixellm_serve_rejections"]] == ["photo_format", "model_not_found", "not_found",
                                                                               "internal_error"]
    assert len(told["pixellm_serve_request_seconds"]) == 5 and "zanzibar" not in str(told)


def test_a_stream_that_breaks_is_a_rejection_too(told):
    call("POST", "/v1/segment", **as_form(PNG, "poison", stream="true"))
    assert [tags for _, tags in told["pixellm_serve_rejections"]] == [{"route": "/v1/segment", "reason": "model_failed"}]


def test_a_replica_tells_answers_times_and_its_engine(told):
    class Loaded(RuleSegmenter):
        @property
        def load(self):
            return EngineLoad(4, 4, 6, 400.0, 600.0, num_photo_hits=3, num_photo_misses=2)

    replica = ModelReplica(CONFIG, lambda config: Loaded())

    async def run():
        for one in (build_ask("Which half?", parts=True), build_ask("none?")):
            [event async for event in replica.ask(one)]
        return await replica.record_autoscaling_stats()

    assert asyncio.run(run()) == {"engine_load": 2.5}
    values = {name.removeprefix("pixellm_serve_"): [value for value, _ in each] for name, each in told.items()}
    assert (values["tokens"], values["masks"], len(values["answer_seconds"]), len(values["first_mask_seconds"])) == ([9, 4], [1], 2, 1)
    assert (values["photo_cache_hits"], values["photo_cache_misses"]) == ([3], [2])  # the new ones, once
    assert [values[f"engine_{name}"][-1] for name in ("running", "waiting", "fill", "load")] == [4, 6, 1.0, 2.5]


def test_rays_own_metrics_take_what_is_told():
    meters = Meters()
    for name, spec in METRICS.items():
        tags = dict.fromkeys(spec.tags, "x")
        short = name.removeprefix("pixellm_serve_")
        if spec.kind is metrics.Counter:
            meters.count(short, 1, **tags)
        elif spec.kind is metrics.Histogram:
            meters.observe(short, 0.5, **tags)
    meters.show_load(EngineLoad(4))
    with pytest.raises(ValueError):
        meters.count("requests", 1, colour="red")


def test_every_metric_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    for name, spec in METRICS.items():
        tags = ", ".join(f"`{tag}`" for tag in spec.tags)
        assert f"| `{name}` | {tags} | {spec.kind.__name__.lower()}: {spec.description} |" in text


def test_what_a_layer_answers_before_the_routes_counts_under_its_route(told):
    guarded = CONFIG.model_copy(update={"api_keys": (ApiKey(name="a", sha256="0" * 64),)})
    call("POST", "/v1/segment", config=guarded, **as_form(PNG))
    call("POST", "/livez")
    call("POST", "/nowhere/secret", config=guarded)
    assert [tags for _, tags in told["pixellm_serve_rejections"]] == [
        {"route": "/v1/segment", "reason": "key_missing"}, {"route": "/livez", "reason": "method_not_allowed"},
        {"route": "other", "reason": "key_missing"}]


def test_an_answer_that_is_given_again_counts_as_a_replay(told):
    async def twice():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(build_api(CONFIG, RuleModel())), base_url="http://localhost") as client:
            for _ in range(2):
                await client.post("/v1/segment", headers={"idempotency-key": "k"}, **as_json(PNG))

    asyncio.run(twice())
    assert [tags for _, tags in told["pixellm_serve_replays"]] == [{"route": "/v1/segment"}]
