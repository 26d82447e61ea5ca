"""The images, as far as a machine without Docker can show: each target's packages resolve and import, and its entry points run.

Follows the Dockerfile itself: what it copies goes into a folder laid out as /app, what it installs into an environment of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.validation.docker import Instruction, read_instructions
from jobs.validation.runs import JOBS
from tests.conftest import ROOT

DOCKERFILE = ROOT / "platform/docker/Dockerfile"
OF_THE_SYSTEM = ("apt-get", "useradd")


def instructions_of(target: str) -> list[Instruction]:
    """Those of the base, then those of the target."""
    stages: dict[str, list[Instruction]] = {}
    for instruction in read_instructions(DOCKERFILE):
        if instruction.word == "FROM":
            source, _, name = instruction.text.partition(" AS ")
            stages[name] = list(stages.get(source, []))
        else:
            stages[name].append(instruction)
    return stages[target]


def run(command: list[str], **options) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]} {done.stderr[-4000:]}"


def build(target: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """The folder that is /app in the image, and the environment of its processes."""
    app, home = folder / "app", folder / "home"
    app.mkdir(), home.mkdir()
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    run([sys.executable, "-m", "pip", "--python", str(folder / "venv/bin/python"), "install", "-q", "pip"])
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name in ("LANG", "no_proxy", "NO_PROXY")}
    variables = kept | {"PATH": f"{folder / 'venv/bin'}:/usr/bin:/bin", "HOME": str(home), "DEVICE": "cuda", "GIT_REVISION": "abc"}
    for instruction in instructions_of(target):
        if instruction.word == "COPY":
            *sources, destination = instruction.text.split()
            for source in sources:
                to = app / destination / (Path(source).name if destination.endswith("/") else "")
                to.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, to)
        elif instruction.word == "ENV":
            pairs = (pair.split("=", 1) for pair in instruction.text.split())
            variables |= {name: variables[value[1:]] if value.startswith("$") else value for name, value in pairs}
        elif instruction.word == "RUN" and not instruction.text.startswith(OF_THE_SYSTEM):
            run(["sh", "-ec", instruction.text], cwd=app, env=variables, timeout=1200)
    return app, variables


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("target", "modules", "missing"), [
    ("train", ("pixellm.train.trainer", "pixellm.data.stream", "pixellm.curation.curate", "deepspeed"), ("fastapi",)),
    ("serve", ("serve.app", "pixellm.inference.segmenter", "ray.serve"), ("deepspeed", "peft")),
])
def test_packages_resolve_and_entry_points_run(target, modules, missing, tmp_path):
    app, variables = build(target, tmp_path)
    python = str(tmp_path / "venv/bin/python")
    elsewhere = tmp_path / "home"  # where only what is installed is found
    run([python, "-c", "; ".join(f"import {name}" for name in modules)], cwd=elsewhere, env=variables)
    for name in missing:
        assert subprocess.run([python, "-c", f"import {name}"], cwd=elsewhere, env=variables, capture_output=True).returncode != 0, name
    jobs = ["deploy", "ask"] if target == "serve" else [job for job in JOBS if job != "benchmark"]
    for job in jobs:
        run([python, "-m", f"jobs.{job}", "--help"], cwd=app, env=variables)
    run([str(tmp_path / "venv/bin/pixellm"), "segment", str(ROOT / "docs/images/answer.png"), "where is the ring?", "--out", "answer.png"],
        cwd=elsewhere, env=variables)
    run(["pip", "check"], cwd=app, env=variables)
    assert (app / "platform/serve.sh").is_file() and os.access(app / "platform/haproxy.sh", os.X_OK) and not (app / "build").exists()
