"""Asks a served model about a photo and draws the answer: `python -m jobs.ask image=PATH question="…" output=answer.png`.

`shards=URI` in place of `image` takes a photo and a question from a shard folder.
"""

import io
import sys

import httpx
from pydantic import Field, model_validator

from pixellm.data.examples import read_example
from pixellm.drawing import draw_answer
from pixellm.errors import PixelLMError
from pixellm.inference.photos import load_photo
from pixellm.masks import rle_to_mask
from pixellm.settings import StrictModel, parse_command_line
from pixellm.storage import read_bytes, write_bytes
from serve.schemas import SegmentResponse


class AskConfig(StrictModel):
    """One question to one server."""

    url: str = Field(default="http://127.0.0.1:8000", description="address of the server")
    image: str | None = Field(default=None, description="path or URI of a photo")
    shards: str | None = Field(default=None, description="URI of a shard folder: a photo and a question from it")
    question: str | None = Field(default=None, description="required with image")
    output: str = Field(default="demo-output/answer.png", description="path or URI of the picture")
    max_new_tokens: int | None = None
    timeout_s: float = Field(default=120, gt=0)

    @model_validator(mode="after")
    def _check_input(self) -> "AskConfig":
        if (self.image is None) == (self.shards is None) or (self.image and not self.question):
            raise ValueError("give image and question, or shards")
        return self


def ask(config: AskConfig, photo: bytes, question: str) -> SegmentResponse:
    """Post the form. Raises PixelLMError, with the server's own words if it answers with a problem."""
    fields = {"question": question} | ({"max_new_tokens": str(config.max_new_tokens)} if config.max_new_tokens else {})
    try:
        response = httpx.post(f"{config.url.rstrip('/')}/v1/segment", files={"image": photo}, data=fields, timeout=config.timeout_s)
    except httpx.HTTPError as error:
        raise PixelLMError(f"no answer from {config.url} ({error}); is the model deployed there (jobs.deploy)?") from None
    if response.status_code != 200:
        is_problem = response.headers.get("content-type") == "application/problem+json"
        detail = response.json()["detail"] if is_problem else response.text[:200]
        raise PixelLMError(f"{config.url} answered {response.status_code}: {detail}")
    return SegmentResponse.model_validate(response.json())


def print_answer(question: str, answer: SegmentResponse, output: str) -> None:
    """The texts, and a line for each mask."""
    print(f"question {question}\nanswer {answer.text}")
    for mask in answer.masks:
        print(f"  {mask.label:<32} score {mask.score:.2f}   box {list(mask.bbox)!s:<22} {mask.area:>9,} pixels   {mask.color}")
    print(f"wrote {output}, {len(answer.masks)} masks", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(AskConfig, __doc__ or "", argv)
    try:
        photo, example = read_example(config.shards) if config.shards else (read_bytes(config.image or ""), "")
        question = config.question or example
        answer = ask(config, photo, question)
        masks = [rle_to_mask(mask.rle) for mask in answer.masks]
        buffer = io.BytesIO()
        draw_answer(load_photo(photo), question, answer.text, [mask.span for mask in answer.masks], masks).save(buffer, "PNG")
        write_bytes(config.output, buffer.getvalue())
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print_answer(question, answer, config.output)


if __name__ == "__main__":
    main()
