"""The shape of Hugging Face's image-segmentation task: `InferenceClient(model=URL)` and its `image_segmentation` work.

The task has no question: it is the query parameter `question` of the URL, `https://HOST/adapters/huggingface?question=…`.
"""

import asyncio

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from serve.adapters.common import answer_question
from serve.config import AppConfig
from serve.limits import JSON, decode_base64, media_type, parse_json, receive
from serve.messages import Model
from serve.openapi import problem_responses, ref, request_body
from serve.outputs import to_format
from serve.pools import PARSING


class TaskParameters(BaseModel):
    """`mask_threshold`, `overlap_mask_area_threshold` and `subtask` are accepted and mean nothing to this model."""

    model_config = ConfigDict(extra="allow")
    threshold: float | None = Field(default=None, description="Masks of a lower score are left out.")


class TaskRequest(BaseModel):
    inputs: str = Field(description="The photo in base64.", json_schema_extra={"format": "byte"})
    parameters: TaskParameters | None = None


class TaskMask(BaseModel):
    label: str
    score: float
    mask: str = Field(description="A black and white PNG of the photo's size, in base64.")


def add_huggingface_route(api: FastAPI, config: AppConfig, model: Model) -> None:
    """For `huggingface_hub` and whoever else speaks the task."""
    contents = {JSON: ref(TaskRequest), "image/*": {"schema": {"type": "string", "format": "binary"}}}

    @api.post("/adapters/huggingface", summary="Hugging Face's image-segmentation task", responses=problem_responses(404),
              openapi_extra=request_body(contents))
    async def image_segmentation(request: Request, question: str = Query(description="What to answer and to point at.")) -> list[TaskMask]:
        data = await receive(request, config, Request.body)
        threshold = None
        if media_type(request) == JSON:
            body = await PARSING.run(parse_json, data, TaskRequest)
            threshold = body.parameters.threshold if body.parameters else None
            data = await PARSING.run(decode_base64, body.inputs, "inputs")
        answer = await answer_question(request, data, question, config, model)
        kept = [mask for mask in answer.masks if threshold is None or mask.score >= threshold]
        encoded = [(await asyncio.to_thread(to_format, mask, "png")).segmentation for mask in kept]
        return [TaskMask(label=mask.label, score=mask.score, mask=str(png)) for mask, png in zip(kept, encoded, strict=True)]
