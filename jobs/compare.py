"""Which differences between two evaluations are larger than chance: `python -m jobs.compare A B`, two folders that jobs.evaluate wrote.

The photos that both have are drawn anew, again and again (a paired bootstrap); a difference counts where the interval that holds 95 % of
the draws excludes 0.
Prints a table, and as its last line one JSON object.
"""

import json
import sys

from pixellm.errors import PixelLMError
from pixellm.evaluation.comparison import compare_scores, read_scores

HELP = ("-h", "--help")


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2 or arguments[0] in HELP:
        print(__doc__)
        sys.exit(0 if arguments and arguments[0] in HELP else "error: give the two folders")
    try:
        one, other = map(read_scores, arguments)
        differences, num_photos = compare_scores(one, other)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    print(f"A: {one.about['model']}, B: {other.about['model']}; protocol {one.about['protocol']}, {one.about['mode']}, {num_photos} photos")
    print(f"{'figure':<24}{'A':>9}{'B':>9}{'B - A':>9}   95 % interval")
    for name, each in differences.items():
        verdict = "larger than chance" if each.is_larger_than_chance else "may be chance"
        print(f"{name:<24}{each.one:>9.4f}{each.other:>9.4f}{each.other - each.one:>+9.4f}   {each.interval.low:+.4f} to "
              f"{each.interval.high:+.4f}  {verdict}")
    print(json.dumps({"num_photos": num_photos, "figures": {
        name: {"a": each.one, "b": each.other, "low": each.interval.low, "high": each.interval.high,
               "larger_than_chance": each.is_larger_than_chance} for name, each in differences.items()}}))


if __name__ == "__main__":
    main()
