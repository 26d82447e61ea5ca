"""The HTTP face: all routes in one ASGI app, which needs no running Ray: whoever answers is handed in."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from serve.access import KeyGuard
from serve.adapters.huggingface import TaskRequest, add_huggingface_route
from serve.adapters.label_studio import PredictRequest, add_label_studio_routes
from serve.adapters.roboflow import add_roboflow_route
from serve.admission import Admission
from serve.chat import add_chat_routes
from serve.chat_schemas import ChatChunk, ChatRequest
from serve.config import AppConfig
from serve.health import WatchedModel, add_health_routes
from serve.idempotency import Idempotency
from serve.messages import Model
from serve.metrics import Meters, RequestMeter
from serve.openapi import document_by_hand
from serve.page import add_page
from serve.problems import RequestGuard, install_error_handlers
from serve.schemas import Problem, SegmentForm, SegmentPart, SegmentRequest
from serve.security_headers import SecurityHeaders, add_docs_route
from serve.segment import add_segment_route


def build_api(config: AppConfig, model: Model, echo_request_id: bool = True) -> FastAPI:
    """The ASGI app that validates requests within `config`'s limits and answers them with `model`."""
    api = FastAPI(title="PixelLM", summary="Ask about a photo; get a sentence, and a mask for each thing it names.", docs_url=None,
                  redoc_url=None)
    api.add_middleware(Idempotency, config=config)  # the last that is added is the first that a request meets
    api.add_middleware(Admission, config=config)
    api.add_middleware(KeyGuard, config=config)
    if config.cors_origins:
        api.add_middleware(CORSMiddleware, allow_origins=config.cors_origins, allow_methods=["GET", "POST"],
                           allow_headers=["authorization", "content-type", "idempotency-key", "x-answer-timeout-s", "x-api-key",
                                          "x-request-id"],
                           expose_headers=["idempotent-replayed", "retry-after", "x-request-id"])
    api.add_middleware(SecurityHeaders, is_tls=config.tls_key is not None)
    api.add_middleware(RequestGuard, echo_id=echo_request_id)
    paths: set[str] = set()
    api.add_middleware(RequestMeter, meters=Meters(), paths=paths)
    install_error_handlers(api)
    awake = {each.model_name: each.health_check_timeout_s for each in config.models if each.autoscaling.min_replicas}
    watched = WatchedModel(model, awake)
    add_docs_route(api)
    add_health_routes(api, config, watched)
    add_segment_route(api, config, watched)
    add_chat_routes(api, config, watched)
    add_huggingface_route(api, config, watched)
    add_label_studio_routes(api, config, watched)
    add_roboflow_route(api, config, watched)
    add_page(api)
    paths.update(route.path for route in api.routes if isinstance(route, APIRoute) and "{" not in route.path)
    document_by_hand(api, SegmentForm, SegmentRequest, SegmentPart, ChatRequest, ChatChunk, TaskRequest, PredictRequest, Problem)
    return api
