"""What every adapter does: one question about one encoded photo, within the deployment's limits."""

from fastapi import Request

from serve.config import AppConfig
from serve.limits import answer_options, checked_question, in_time, read_photo
from serve.messages import Ask, Model
from serve.schemas import SegmentResponse


async def answer_question(request: Request, image: bytes, question: str, config: AppConfig, model: Model) -> SegmentResponse:
    """Masks as RLE. Raises what `/v1/segment` answers with."""
    asked = checked_question(question, config)
    ask = Ask(await read_photo(image, config, request), (asked,), config.max_new_tokens, answer_options(request, config),
              model=config.model_name)
    (answer,) = [event.news async for event in in_time(model, ask) if isinstance(event.news, SegmentResponse)]
    return answer
