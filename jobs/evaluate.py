"""Evaluate a model over shards by free generation: `python -m jobs.evaluate shards=URI model=URI output=URI`.

Prints its progress, a summary for people, and as its last line one JSON object with the main figures.
"""

import json
import sys

from pixellm.errors import PixelLMError
from pixellm.evaluation.evaluate import EvaluateConfig, evaluate
from pixellm.evaluation.report import headline, write_report
from pixellm.inference.batch import check_failures
from pixellm.settings import parse_command_line


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(EvaluateConfig, __doc__ or "", argv)
    print(f"evaluate: {config.model} on {config.shards}", flush=True)
    try:
        evaluation = evaluate(config, progress=lambda line: print(line, flush=True))
        page = write_report(evaluation, lambda line: print(line, flush=True))
        figures = headline(evaluation)
        print(f"evaluate: gIoU {_shown(figures['giou'])}, cIoU {_shown(figures['ciou'])}, {figures['num_wrong_count']} of "
              f"{figures['num_questions']} questions with a wrong number of masks, {figures['num_failed_photos']} photos set aside")
        print(f"evaluate: report at {page}", flush=True)
        check_failures(evaluation.failures, evaluation.num_photos, config.max_failed_share)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(figures | {"report": page}), flush=True)


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
