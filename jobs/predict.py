"""Asks one question about every photo of a folder: `python -m jobs.predict photos=URI 'question=…' output=URI format=overlay [model=URI]`.

Writes `answers.jsonl`, `set_aside.jsonl` (photos that failed, with the reason) and what `format` says below `output`. COCO results take
their image ids from `annotations=FILE`; without it `result_ids.json` says which they are. Prints its progress, and as its last line one
JSON object with the main figures. Above `max_failed_share` of photos set aside it ends with an error.
"""

import json
import sys
import time
from collections import Counter

from pixellm.errors import PixelLMError
from pixellm.inference.batch import check_failures
from pixellm.inference.predict import PredictConfig, predict
from pixellm.settings import parse_command_line


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    config = parse_command_line(PredictConfig, __doc__ or "", argv)
    begun = time.monotonic()
    try:
        records = predict(config)
        failures = [record for record in records if record["failure"]]
        figures = {"num_photos": len(records), "num_masks": sum(len(record["masks"] or ()) for record in records),
                   "num_set_aside": len(failures), "set_aside": dict(Counter(record["failure"] for record in failures)),
                   "seconds": round(time.monotonic() - begun, 1)}
        print(f"predict: {len(records) - len(failures)} of {len(records)} photos answered with {figures['num_masks']} masks in "
              f"{figures['seconds']} s, {len(failures)} set aside; {config.format} in {config.output}", flush=True)
        check_failures(failures, len(records), config.max_failed_share)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(figures | {"output": config.output}), flush=True)


if __name__ == "__main__":
    main()
