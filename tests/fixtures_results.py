"""`pytest --results FOLDER`: tests that measure something write what they found there, with the machine and the command."""

import json
import os
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--results`; the committed ones are in docs/benchmarks."""
    parser.addoption("--results", metavar="FOLDER", help="tests that measure something write NAME.json there")


@pytest.fixture
def record_result(request: pytest.FixtureRequest) -> Callable[[str, dict[str, Any]], None]:
    """`record_result(name, figures)`; without `--results` it only prints."""
    from jobs.benchmarks.result import describe_machine
    from pixellm.revision import git_revision

    def record(name: str, figures: dict[str, Any]) -> None:
        print(f"{name}: {json.dumps(figures)}")
        folder = request.config.getoption("--results")
        if folder is None:
            return
        command = shlex.join(["pytest", *request.config.invocation_params.args])
        about = {"test": request.node.nodeid, "command": command, "date": datetime.now(UTC).isoformat(timespec="seconds"),
                 "git_revision": git_revision(), "machine": describe_machine(), "load_average_1min": round(os.getloadavg()[0], 1)}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(json.dumps(about | figures, indent=1) + "\n")

    return record
