"""The shape of Roboflow's instance segmentation, which `supervision.Detections.from_inference` reads.

The shape has no question: it is the query parameter `question`, `/adapters/roboflow?question=…`. Masks come as COCO RLE, exact.
"""


from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, Field

from serve.adapters.common import answer_question
from serve.config import AppConfig
from serve.limits import decode_base64, media_type, receive
from serve.messages import Model
from serve.openapi import problem_responses, request_body
from serve.pools import PARSING
from serve.schemas import Rle, SegmentResponse

TEXT = "application/x-www-form-urlencoded"  # by which Roboflow's clients call the bare base64 text that they send


class ImageSize(BaseModel):
    width: int
    height: int


class Prediction(BaseModel):
    """`x` and `y` are the middle of the box."""

    x: float
    y: float
    width: float
    height: float
    confidence: float
    class_name: str = Field(serialization_alias="class")
    class_id: int = Field(description="Equal for equal classes of one answer.")
    detection_id: str
    rle: Rle


class Inference(BaseModel):
    image: ImageSize
    predictions: list[Prediction]


def add_roboflow_route(api: FastAPI, config: AppConfig, model: Model) -> None:
    """For `supervision` and whoever else reads Roboflow's predictions."""
    contents = {"image/*": {"schema": {"type": "string", "format": "binary"}}, TEXT: {"schema": {"type": "string", "format": "byte"}}}

    @api.post("/adapters/roboflow", summary="Roboflow's instance segmentation", responses=problem_responses(404),
              openapi_extra=request_body(contents))
    async def infer(request: Request, question: str = Query(description="What to answer and to point at.")) -> Inference:
        data = await receive(request, config, Request.body)
        if media_type(request) == TEXT:
            data = await PARSING.run(lambda: decode_base64(data.decode("ascii", "replace"), "body"))
        return to_inference(await answer_question(request, data, question, config, model))


def to_inference(answer: SegmentResponse) -> Inference:
    class_ids = {label: index for index, label in enumerate(dict.fromkeys(mask.label for mask in answer.masks))}
    predictions = []
    for mask in answer.masks:
        x, y, width, height = mask.bbox
        predictions.append(Prediction(
            x=x + width / 2, y=y + height / 2, width=width, height=height, confidence=mask.score, class_name=mask.label,
            class_id=class_ids[mask.label], detection_id=mask.id, rle=Rle.model_validate(mask.rle)))
    height, width = answer.size
    return Inference(image=ImageSize(width=width, height=height), predictions=predictions)
