"""Makes questions about annotated photos with a vision-language model: `python -m jobs.curate pipeline=v2 shards=URI output=URI …`.

Any endpoint that speaks OpenAI's chat completions will do. `dry_run=true` says what it would cost at most. Started again, it goes on where
it was killed or had to stop, and pays for nothing twice. docs/curation.md has the whole.
"""

import sys

from pixellm.curation.config import CurateConfig
from pixellm.curation.curate import curate
from pixellm.curation.estimate import estimate, estimate_lines
from pixellm.errors import PixelLMError
from pixellm.settings import parse_command_line


def main(argv: list[str] | None = None) -> None:
    """Entry point. Joins the cluster of RAY_ADDRESS (which `ray job submit` sets), else starts Ray on this machine."""
    config = parse_command_line(CurateConfig, __doc__ or "", argv)
    try:
        if config.dry_run:
            print("\n".join(f"  {line}" for line in estimate_lines(config, estimate(config))))
            return
        report = curate(config, say=lambda line: print(f"  {line}", flush=True))
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print("\n".join(f"  {line}" for line in report.lines()))


if __name__ == "__main__":
    main()
