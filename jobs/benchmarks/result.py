"""What a suite takes and gives, and how that is shown: a report for people (Markdown) and one JSON object for programs."""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from jobs.benchmarks import SUITES
from pixellm.revision import git_revision
from pixellm.settings import StrictModel
from pixellm.uris import Uri

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "numpy")
GIB = 1 << 30


class BenchmarkConfig(StrictModel):
    """What every suite has; each adds its own keys."""

    suite: str = Field(description=f"one of {', '.join(SUITES)}; suite=NAME --help lists its keys")
    quick: bool = Field(False, description="finish in a minute, for a look; committed results come from full runs")
    output: Uri | None = Field(None, description="folder that gets NAME.json and NAME.md; the committed ones are docs/benchmarks")


@dataclass(frozen=True)
class Case:
    """One measured thing: `values` in `unit`, one for each repeat, in the order of measuring."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third; both are the median when there is one value."""
        if len(self.values) == 1:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.values, n=4, method="inclusive")
        return first, third

    def to_dict(self) -> dict[str, Any]:
        """For JSON. `spread` is the distance of the quartiles, in `unit` like the median."""
        first, third = self.quartiles
        return {"unit": self.unit, "median": self.median, "spread": third - first, "quartiles": [first, third], "min": min(self.values),
                "max": max(self.values), "num": len(self.values)}


@dataclass(frozen=True)
class Table:
    """Rows of cells; numbers are shown with separators and four significant digits, and to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def to_markdown(self) -> str:
        """A Markdown table whose columns are aligned in plain text too."""
        cells = [[str(column) for column in self.columns], *([_shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        is_number = [all(isinstance(row[i], int | float) for row in self.rows) for i in range(len(self.columns))]
        lines = ["| " + " | ".join(cell.rjust(width) if right else cell.ljust(width)
                                   for cell, width, right in zip(row, widths, is_number, strict=True)) + " |" for row in cells]
        rule = "| " + " | ".join("-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, is_number, strict=True)) + " |"
        return "\n".join([f"## {self.title}", "", lines[0], rule, *lines[1:]])


@dataclass(frozen=True)
class BenchmarkResult:
    """`headline`: the figures that the suite is run for, by the keys that users look for; `tables` of what is counted rather than timed;
    `notes` say what was compared with what, one sentence each."""

    headline: dict[str, Any]
    cases: Sequence[Case] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class BenchmarkReport:
    """A result with everything that is needed to measure it again."""

    config: BenchmarkConfig
    command: str
    result: BenchmarkResult
    machine: dict[str, Any] = field(default_factory=lambda: describe_machine())
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    git_revision: str | None = field(default_factory=git_revision)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; the headline's keys stand beside `suite`, `machine` and the others."""
        about = {"suite": self.config.suite, "machine": self.machine, "date": self.date, "command": self.command,
                 "git_revision": self.git_revision, "settings": self.config.model_dump(mode="json"),
                 "cases": {case.name: case.to_dict() for case in self.result.cases}, "notes": list(self.result.notes)}
        assert not about.keys() & self.result.headline.keys(), f"headline keys of {self.config.suite} hide the report's own"
        return about | self.result.headline

    def to_markdown(self) -> str:
        """For people."""
        machine = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        lines = [f"# Benchmark `{self.config.suite}`", "", "Measured: " + SUITES[self.config.suite] + ".", "",
                 f"- Command: `{self.command}`", f"- Date: {self.date}", f"- Machine: {machine}", f"- Code: {self.git_revision}"]
        if self.config.quick:
            lines.append("- A quick run: for a look, not for quoting")
        tables = list(self.result.tables)
        if self.result.cases:
            rows = [(case.name, case.median, *case.quartiles, case.unit, len(case.values)) for case in self.result.cases]
            tables.append(Table("Cases", ("case", "median", "first quartile", "third quartile", "unit", "repeats"), rows))
        figures = [(key, value) for key, value in self.result.headline.items() if not isinstance(value, dict | list)]
        if figures:
            tables.append(Table("Headline", ("key", "value"), figures))
        for table in tables:
            lines += ["", table.to_markdown()]
        if self.result.notes:
            lines += ["", "## Notes", "", *(f"- {note}" for note in self.result.notes)]
        return "\n".join(lines) + "\n"

    def write(self, folder: str) -> None:
        """`NAME.json` and `NAME.md` in `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{self.config.suite}.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        (Path(folder) / f"{self.config.suite}.md").write_text(self.to_markdown())


def describe_machine() -> dict[str, Any]:
    """What the figures depend on: processor, accelerator, memory, and versions of the packages that are installed."""
    names = [line.partition(":")[2].strip() for line in _read_lines("/proc/cpuinfo") if line.startswith("model name")]
    machine: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "torch_threads": torch.get_num_threads(), "python": platform.python_version()}
    installed = {distribution.metadata["Name"].lower(): distribution.version for distribution in metadata.distributions()}
    return machine | {name: installed[name] for name in PACKAGES if name in installed}


def _read_lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
