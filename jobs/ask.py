"""Asks a served model about a photo and draws the answer: `python -m jobs.ask image=PATH question="…" output=answer.png`.

`shards=URI` in place of `image` takes a photo and a question from a shard folder. A server that asks for an API key gets $PIXELLM_API_KEY.
"""

import io
import os
import sys

from PIL import Image
from pydantic import Field, model_validator

from pixellm.data.examples import read_example
from pixellm.drawing import draw_answer
from pixellm.errors import PixelLMError
from pixellm.masks import rle_to_mask
from pixellm.photos import load_photo
from pixellm.settings import StrictModel, parse_command_line
from pixellm.storage import read_bytes, write_bytes
from pixellm.uris import Uri
from serve.client import Client
from serve.schemas import SegmentResponse


class AskConfig(StrictModel):
    """One question to one server."""

    url: str = Field(default="http://127.0.0.1:8000", description="address of the server")
    image: Uri | None = Field(default=None, description="path or URI of a photo")
    shards: Uri | None = Field(default=None, description="URI of a shard folder: a photo and a question from it")
    question: str | None = Field(default=None, description="required with image")
    output: Uri = Field(default="demo-output/answer.png", validate_default=True, description="path or URI of the picture")
    max_new_tokens: int | None = None
    timeout_s: float = Field(default=120, gt=0)

    @model_validator(mode="after")
    def _check_input(self) -> "AskConfig":
        if (self.image is None) == (self.shards is None) or (self.image and not self.question):
            raise ValueError("give image and question, or shards")
        return self


def write_answer(photo: Image.Image, question: str, answer: SegmentResponse, output: str) -> None:
    """Draws the answer, and prints its text with a line for each mask."""
    buffer = io.BytesIO()
    masks = [rle_to_mask(mask.rle) for mask in answer.masks]
    draw_answer(photo, question, answer.text, [mask.span for mask in answer.masks], masks).save(buffer, "PNG")
    write_bytes(output, buffer.getvalue())
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
        with Client(config.url, config.timeout_s, api_key=os.environ.get("PIXELLM_API_KEY")) as client:
            answer = client.segment(photo, question, config.max_new_tokens)
        write_answer(load_photo(photo), question, answer, config.output)
    except PixelLMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
