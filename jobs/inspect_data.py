"""Says what a shard folder holds, and writes a page of sample rows: `python -m jobs.inspect_data URI [output=samples.html]`."""

import sys

from pydantic import Field

from pixellm.data.survey import build_page, read_samples, survey
from pixellm.errors import PixelLMError
from pixellm.settings import Seed, StrictModel, parse_command_line
from pixellm.storage import write_bytes
from pixellm.uris import Uri


class InspectConfig(StrictModel):
    """What to look at."""

    uri: Uri = Field(description="shard folder")
    output: Uri = Field("samples.html", validate_default=True, description="the page; a local path or a URI")
    samples: int = Field(12, ge=0, description="rows on the page")
    seed: Seed = Field(0, description="which rows")


def main(argv: list[str] | None = None) -> None:
    """Entry point. A first argument without `=` is the URI."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and "=" not in argv[0] and not argv[0].startswith("-"):
        argv = [f"uri={argv[0]}", *argv[1:]]
    config = parse_command_line(InspectConfig, __doc__ or "", argv)
    try:
        found = survey(config.uri)
        print("\n".join(f"  {line}" for line in found.lines()), flush=True)
        page = build_page(config.uri, found, read_samples(config.uri, config.samples, config.seed))
        write_bytes(config.output, page.encode())
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"  wrote {config.output}")


if __name__ == "__main__":
    main()
