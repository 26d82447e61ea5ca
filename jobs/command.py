"""The command `pixellm`: `pixellm segment photo.jpg "Which of these can roll?" --out answer.png`, with a model here or behind a URL.

A server that asks for an API key gets $PIXELLM_API_KEY. `pixellm key NAME` makes such a key.
"""

import argparse
import os
import sys

from jobs.ask import write_answer
from pixellm.errors import PixelLMError
from pixellm.inference.config import InferenceConfig
from pixellm.photos import load_photo
from pixellm.settings import build_config
from pixellm.storage import read_bytes, write_bytes
from serve.client import Client
from serve.keys import make_key
from serve.schemas import SegmentResponse


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pixellm", description="Ask about a photo; get a sentence, and a mask for each thing it names.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("key", help="make an API key for somebody").add_argument("name")
    segment = commands.add_parser("segment", help="answer one question about one photo")
    segment.add_argument("photo", help="path or URI of a photo (JPEG, PNG or WebP)")
    segment.add_argument("question")
    segment.add_argument("--out", default="answer.png", metavar="FILE", help="path or URI of the picture (%(default)s)")
    segment.add_argument("--json", metavar="FILE", help="also write the answer with its masks (COCO RLE) there")
    segment.add_argument("--model", default="tiny", help="a model directory, its URI, tiny, or the http(s) URL of a server (%(default)s)")
    segment.add_argument("--max-new-tokens", type=int, default=None, metavar="N", help="longest answer")
    segment.add_argument("--device", default="cpu", help="for a model here: cpu, cuda or cuda:N (%(default)s)")
    segment.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="for a model here (%(default)s)")
    return parser.parse_args(argv)


def answer(arguments: argparse.Namespace, photo: bytes) -> SegmentResponse:
    """From a server, or from a model in this process."""
    if arguments.model.startswith(("http://", "https://")):
        with Client(arguments.model, api_key=os.environ.get("PIXELLM_API_KEY")) as client:
            return client.segment(photo, arguments.question, arguments.max_new_tokens)
    from pixellm.inference.segmenter import load_segmenter  # torch takes seconds to load

    values = {"model": arguments.model, "device": arguments.device, "dtype": arguments.dtype}
    config = build_config(InferenceConfig, values, where="command line")
    segmentation = load_segmenter(config).segment(load_photo(photo), arguments.question, arguments.max_new_tokens or config.max_new_tokens)
    return SegmentResponse.from_segmentation(segmentation, arguments.model)


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = parse(argv)
    try:
        if arguments.command == "key":
            key, entry = make_key(arguments.name)
            print(f"{key}\n\nFor them only; it is not kept. In the deployment's YAML:\n\napi_keys:\n"
                  f"  - {{name: {entry.name}, sha256: {entry.sha256}}}")
            return
        photo = read_bytes(arguments.photo)
        found = answer(arguments, photo)
        if arguments.json:
            write_bytes(arguments.json, found.model_dump_json(exclude_none=True).encode())
        write_answer(load_photo(photo), arguments.question, found, arguments.out)
    except PixelLMError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
