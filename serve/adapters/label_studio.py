"""Label Studio's machine learning backend: `GET /health`, `POST /setup`, `/predict`, `/webhook` below `/adapters/label_studio`.

The question of a task is the text of the region that somebody drew or wrote (`params.context`), else the task's `data.question`, else it
is asked for the labels of the project. A task's photo is a `data:` URL or base64, a path of the Label Studio server that the deployment
names, or an https URL where the deployment fetches those.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from xml.etree import ElementTree

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from pixellm.errors import InputError
from pixellm.masks import rle_to_mask
from serve.adapters.common import answer_question
from serve.adapters.label_studio_photos import is_in_label_studio, read_label_studio_photo
from serve.adapters.label_studio_rle import encode_brush
from serve.config import AppConfig
from serve.limits import JSON, read_image, read_json
from serve.messages import Model
from serve.openapi import problem_responses, ref, request_body
from serve.pools import PARSING
from serve.problems import ApiError, to_api_error
from serve.schemas import Mask, SegmentResponse

PREFIX = "/adapters/label_studio"
_WORD = re.compile(r"[^\W_]+")
_PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"))
MAX_TASKS = 1000  # longer lists are refused unread
MAX_BATCH = 100  # what Label Studio sends at a time by default; answered one after the other
BATCH_TIME_S = 90.0  # Label Studio waits 100 s
MAX_TASK_ITEMS = 1_000_000  # tasks and regions come with the brush masks that people drew, a number for each byte
MAX_CONFIG_CHARS = 65_536  # a project's XML has some hundred
BYTES_PER_NUMBER = 5  # of an answer, which writes each byte of a mask as a JSON number and a comma


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Task(_Open):
    id: int | str | None = None
    data: dict[str, Any]


class PredictParameters(_Open):
    context: dict[str, Any] | None = None


class PredictRequest(_Open):
    tasks: list[Task] = Field(max_length=MAX_TASKS)
    label_config: str = Field(max_length=MAX_CONFIG_CHARS, description="The project's XML, with a BrushLabels tag for an Image tag.")
    params: PredictParameters | None = None


class Brush(BaseModel):
    format: Literal["rle"] = "rle"
    rle: list[int]
    brushlabels: list[str]


class Region(BaseModel):
    id: str
    from_name: str
    to_name: str
    type: Literal["brushlabels"] = "brushlabels"
    original_width: int
    original_height: int
    image_rotation: Literal[0] = 0
    value: Brush
    score: float


class Prediction(_Open):
    result: list[Region]
    score: float
    model_version: str


class Predictions(BaseModel):
    results: list[Prediction]


class BackendHealth(_Open):
    status: Literal["UP"] = "UP"
    model_class: str = "PixelLM"


class Setup(_Open):
    model_version: str


class _Tags(BaseModel):
    """The project's names of its brush, its photo and the photo's place in the data; the label that is sent (its `alias`, else its `value`)
    by each of its names, and the names that are asked for."""

    brush: str
    image: str
    image_key: str
    labels: dict[str, str]
    asked: list[str]


def add_label_studio_routes(api: FastAPI, config: AppConfig, model: Model) -> None:
    """For a Label Studio server that names this one as its backend."""

    @api.get(f"{PREFIX}/health", summary="Label Studio's check of its backend")
    async def health() -> BackendHealth:
        return BackendHealth()

    @api.post(f"{PREFIX}/setup", summary="Label Studio's greeting")
    async def setup() -> Setup:
        return Setup(model_version=config.model_name)

    @api.post(f"{PREFIX}/webhook", status_code=201, summary="Label Studio's events, which this model does not learn from")
    async def webhook() -> dict[str, str]:
        return {}

    @api.post(f"{PREFIX}/predict", summary="Brush masks for Label Studio's tasks", responses=problem_responses(404),
              openapi_extra=request_body({JSON: ref(PredictRequest)}))
    async def predict(request: Request) -> Predictions:
        body = await read_json(request, config, PredictRequest, MAX_TASK_ITEMS)
        if len(body.tasks) > MAX_BATCH:
            raise ApiError(422, "tasks_too_many", f"There are {len(body.tasks)} tasks, at most {MAX_BATCH} are allowed.", "tasks")
        tags = await PARSING.run(read_label_config, body.label_config)
        context = body.params.context if body.params else None

        async def answer(task: Task) -> Prediction:
            image = task.data.get(tags.image_key)
            if not isinstance(image, str):
                raise ApiError(422, "image_missing", f"A task's data has no text {tags.image_key}, which the Image tag names.", "tasks")
            if is_in_label_studio(image, config.label_studio):
                data = await read_label_studio_photo(image, task.id, config.label_studio, config.max_body_bytes)
            else:
                data = await read_image(image, config, "tasks")
            found = await answer_question(request, data, to_question(task, context, tags.asked), config, model)
            regions = [await asyncio.to_thread(to_region, mask, found, tags) for mask in found.masks]
            kept = [region for region in regions if region]
            left_out = [mask.label for mask, region in zip(found.masks, regions, strict=True) if region is None]
            told = {"left_out": left_out} if left_out else {}  # phrases that name no label of the project
            score = min((region.score for region in kept), default=0.0)
            return Prediction(result=kept, score=score, model_version=config.model_name, **told)  # type: ignore[arg-type]

        async def answer_or_tell(task: Task) -> Prediction:
            """A task that cannot be answered has no masks and its reason: the others of the batch keep theirs."""
            try:
                return await answer(task)
            except (ApiError, InputError) as error:
                if len(body.tasks) == 1 or to_api_error(error).code == "overloaded":
                    raise
                return Prediction(result=[], score=0.0, model_version=config.model_name, error=str(error))  # type: ignore[call-arg]

        results, num_bytes, until_s = [], 0, time.monotonic() + BATCH_TIME_S
        for task in body.tasks:
            if time.monotonic() > until_s:
                late = f"{BATCH_TIME_S:g} s were over; send fewer tasks at a time"
                results.append(Prediction(result=[], score=0.0, model_version=config.model_name, error=late))  # type: ignore[call-arg]
                continue
            results.append(await answer_or_tell(task))
            num_bytes += BYTES_PER_NUMBER * sum(len(region.value.rle) for region in results[-1].result)
            if num_bytes > config.max_body_bytes:
                detail = f"The masks would be an answer of more than {config.max_body_bytes:,} bytes; send fewer tasks at a time."
                raise ApiError(422, "answer_too_large", detail, "tasks")
        return Predictions(results=results)


def read_label_config(label_config: str) -> _Tags:
    """Raises ApiError `label_config_invalid` for XML that is damaged, defines entities, or has no brush for a photo."""
    try:
        if "<!" in label_config.replace("<!--", "").replace("<![CDATA[", ""):  # a document type can define entities that grow without bound
            raise ElementTree.ParseError("it has a document type")
        root = ElementTree.fromstring(label_config)
    except ElementTree.ParseError as error:
        raise ApiError(422, "label_config_invalid", f"label_config is not plain XML: {error}.", "label_config") from None
    images = {image.get("name"): value for image in root.iter("Image") if (value := image.get("value") or "").startswith("$")}
    brush = next((each for each in root.iter("BrushLabels") if each.get("name") and each.get("toName") in images), None)
    if brush is None:
        detail = "label_config has no BrushLabels whose toName is an Image with a value."
        raise ApiError(422, "label_config_invalid", detail, "label_config")
    image = brush.get("toName") or ""
    names = [(label.get("value") or "", label.get("alias") or label.get("value") or "") for label in brush.iter("Label")]
    labels = {name: sent for value, sent in names for name in (value, sent) if name}
    return _Tags(brush=brush.get("name") or "", image=image, image_key=images[image][1:], labels=labels,
                 asked=[value or sent for value, sent in names if sent])


def to_question(task: Task, context: dict[str, Any] | None, labels: Sequence[str]) -> str:
    """The question about a task. Raises ApiError `params_invalid` where the context's result is not a list."""
    result = (context or {}).get("result")
    if not isinstance(result, list | None):
        raise ApiError(422, "params_invalid", f"params.context.result is a {type(result).__name__}, expected a list of regions.", "params")
    for region in result or []:
        text = region.get("value", {}).get("text") if isinstance(region, dict) and isinstance(region.get("value"), dict) else None
        if text:
            return " ".join(map(str, text)) if isinstance(text, list) else str(text)
    return str(task.data.get("question") or f"Where is the {', the '.join(labels)}?")


def to_region(mask: Mask, answer: SegmentResponse, tags: _Tags) -> Region | None:
    """A mask with the label of the project that its phrase names; None where it names none: Label Studio refuses a prediction with a label
    that the project has not, and all its masks with it."""
    label = to_label(mask.label, tags.labels)
    if label is None:
        return None
    height, width = answer.size
    return Region(id=uuid.uuid4().hex[:10], from_name=tags.brush, to_name=tags.image, original_width=width, original_height=height,
                  value=Brush(rle=encode_brush(rle_to_mask(mask.rle)), brushlabels=[label]), score=mask.score)


def to_label(phrase: str, labels: Mapping[str, str]) -> str | None:
    """The label whose name stands first in `phrase`, in any case, singular or plural, the longest there; where a project has one label
    only, that one, whatever the phrase. None where no name is in it."""
    text = phrase.casefold()
    words = [(found.start(), found.group()) for found in _WORD.finditer(text)]
    places: list[tuple[int, int, str]] = []  # where a name starts, its length with a minus, the label
    for name, label in labels.items():
        parts = _WORD.findall(name.casefold())
        places += [(words[first][0], -len(name), label) for first in range(len(words) - len(parts) + 1)
                   if parts and all(_singulars(word) & _singulars(part) for (_, word), part in zip(words[first:], parts, strict=False))]
        if not name.isascii() and name.casefold() in text:  # scripts without spaces
            places.append((text.index(name.casefold()), -len(name), label))
    if places:
        ends = {(start, start - length) for start, length, _ in places}
        return min((start, length, label) for start, length, label in places
                   if not any(a <= start and start - length <= b and (a, b) != (start, start - length) for a, b in ends))[2]
    return next(iter(labels.values())) if len(set(labels.values())) == 1 else None


def _singulars(word: str) -> set[str]:
    """`word`, and all that its singular may be: no rule tells boxes from horses."""
    return {word} | {word.removesuffix(plural) + end for plural, end in _PLURALS if word.endswith(plural) and len(word) > len(plural) + 1}
