"""Measures one thing and says on what: `python -m jobs.benchmark suite=NAME [quick=true] [output=docs/benchmarks]`.

Prints a report for people and, as its last line, one JSON object. `suite=NAME --help` lists the keys of a suite.
"""

import difflib
import importlib
import json
import shlex
import sys

from pydantic import ConfigDict, Field, field_validator

from jobs.benchmarks import SUITES
from jobs.benchmarks.result import BenchmarkReport
from pixellm.errors import PixelLMError
from pixellm.revision import git_revision
from pixellm.settings import StrictModel, parse_command_line

KNOWN = "\n".join(f"  {name:<12}{what}" for name, what in SUITES.items())


class SuiteChoice(StrictModel):
    """The one key that decides which others there are."""

    model_config = ConfigDict(extra="ignore")

    suite: str = Field(description=f"one of {', '.join(SUITES)}; suite=NAME --help lists its keys")

    @field_validator("suite")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in SUITES:
            close = difflib.get_close_matches(name, SUITES, n=1)
            raise ValueError((f"did you mean {close[0]!r}? " if close else "") + f"known suites: {', '.join(SUITES)}")
        return name


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    description = f"{__doc__}\nsuites:\n{KNOWN}"
    has_suite = any(argument.startswith(("suite=", "--config")) for argument in argv)
    choice = parse_command_line(SuiteChoice, description, [a for a in argv if not has_suite or a not in ("-h", "--help")])
    suite = importlib.import_module(f"jobs.benchmarks.{choice.suite}")
    config = parse_command_line(suite.Config, suite.__doc__ or "", argv)
    revision = git_revision()  # before the run: a plot that it writes makes the tree dirty
    try:
        result = suite.run(config)
    except PixelLMError as error:
        sys.exit(f"error: {error}")
    report = BenchmarkReport(config, shlex.join(["python", "-m", "jobs.benchmark", *argv]), result, git_revision=revision)
    if config.output is not None:
        report.write(config.output)
    print(report.to_markdown())
    print(json.dumps(report.to_dict()), flush=True)


if __name__ == "__main__":
    main()
