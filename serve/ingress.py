"""The HTTP face: all routes in one ASGI app. Knows no Ray: whoever answers is handed in."""

from fastapi import FastAPI

from serve.adapters.huggingface import TaskRequest, add_huggingface_route
from serve.adapters.label_studio import PredictRequest, add_label_studio_routes
from serve.adapters.roboflow import add_roboflow_route
from serve.chat import add_chat_routes
from serve.chat_schemas import ChatChunk, ChatRequest
from serve.config import AppConfig
from serve.health import WatchedModel, add_health_routes
from serve.messages import Model
from serve.openapi import document_by_hand
from serve.page import add_page
from serve.problems import RequestGuard, install_error_handlers
from serve.schemas import Problem, SegmentForm, SegmentPart, SegmentRequest
from serve.segment import add_segment_route


def build_api(config: AppConfig, model: Model, echo_request_id: bool = True) -> FastAPI:
    """The ASGI app that validates requests within `config`'s limits and answers them with `model`."""
    api = FastAPI(title="PixelLM", summary="Ask about a photo; get a sentence, and a mask for each thing it names.")
    api.add_middleware(RequestGuard, echo_id=echo_request_id)
    install_error_handlers(api)
    watched = WatchedModel(model, config.health_check_timeout_s)
    add_health_routes(api, config, watched)
    add_segment_route(api, config, watched)
    add_chat_routes(api, config, watched)
    add_huggingface_route(api, config, watched)
    add_label_studio_routes(api, config, watched)
    add_roboflow_route(api, config, watched)
    add_page(api)
    document_by_hand(api, SegmentForm, SegmentRequest, SegmentPart, ChatRequest, ChatChunk, TaskRequest, PredictRequest, Problem)
    return api
