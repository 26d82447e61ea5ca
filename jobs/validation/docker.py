"""Dockerfiles: hadolint's rules, and what it cannot know: this repository's files, extras and versions."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jobs.validation.documents import Report
from jobs.validation.runs import ROOT
from pixellm.settings import did_you_mean


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its lines joined."""

    line: int
    word: str
    text: str


def read_instructions(file: Path) -> list[Instruction]:
    """All of them, without comments."""
    instructions, begun, text = [], 0, ""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.strip().startswith("#") or not (line.strip() or text):
            continue
        begun = begun if text else number
        text += line.rstrip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            word, _, rest = text.strip().partition(" ")
            instructions.append(Instruction(begun, word.upper(), rest.strip()))
            text = ""
    return instructions


@cache
def constraints() -> dict[str, str]:
    """The pinned version of each package."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {_normal(name): version for name, equals, version in (line.partition("==") for line in lines) if equals}


@cache
def project() -> dict:
    """pyproject.toml's table of the project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check_dockerfile(file: Path, report: Report) -> None:
    """One file. Its targets are the images that other files may name."""
    _run_hadolint(file, report)
    instructions = read_instructions(file)
    for instruction in instructions:
        check = {"FROM": _check_from, "COPY": _check_copy, "RUN": _check_run}.get(instruction.word)
        if check is not None:
            check(file, instruction, report)
    _check_targets(file, instructions, report)


def _run_hadolint(file: Path, report: Report) -> None:
    command = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if command is None:
        report.unchecked["Dockerfiles by hadolint: it is not installed; pip install '.[dev]'"] = None
        return
    done = subprocess.run([command, "--no-color", "--format=json", str(file)], capture_output=True, text=True, check=False)
    for found in json.loads(done.stdout or "[]"):
        report.add_line(file, found["line"], f"{found['message']} (hadolint {found['code']})")


def _check_from(file: Path, instruction: Instruction, report: Report) -> None:
    found = re.match(r"\S*python:(\d+)\.(\d+)", instruction.text)
    needed = tuple(map(int, project()["requires-python"].removeprefix(">=").split(".")))
    if found and (int(found[1]), int(found[2])) < needed:
        report.add_line(file, instruction.line, f"Python {found[1]}.{found[2]} is older than the project needs; write "
                        f"{'.'.join(map(str, needed))} or newer")


def _check_copy(file: Path, instruction: Instruction, report: Report) -> None:
    words = [word for word in instruction.text.split() if not word.startswith("--")]
    if "--from=" not in instruction.text:
        for source in words[:-1]:
            if not (ROOT / source).exists():
                there = [each.name for each in (ROOT / source).parent.iterdir()] if (ROOT / source).parent.is_dir() else []
                report.add_line(file, instruction.line, f"COPY {source}: it is not in the repository; "
                                + did_you_mean(Path(source).name, there, "beside it are"))


def _check_run(file: Path, instruction: Instruction, report: Report) -> None:
    for command in re.split(r"&&|;|\bthen\b|\belse\b", instruction.text):
        if not re.match(r"\s*pip3? install\b", command):
            continue
        if "-c constraints.txt" not in command and "--no-deps" not in command:
            report.add_line(file, instruction.line, "pip install without pins: other versions than the tested ones; add -c constraints.txt")
        for name, version in re.findall(r"([A-Za-z][\w.-]*)==([\w.+]+)", command):
            pinned = constraints().get(_normal(name))
            if pinned is not None and pinned != version.partition("+")[0]:
                report.add_line(file, instruction.line, f"{name}=={version}, but constraints.txt has {pinned}; write {name}=={pinned}")
        for extra in ",".join(re.findall(r"\.\[([\w,-]+)\]", command)).split(","):
            extras = project()["optional-dependencies"]
            if extra and extra not in extras:
                report.add_line(file, instruction.line, f"the project has no extra {extra!r}; {did_you_mean(extra, extras, 'it has')}")


def _check_targets(file: Path, instructions: list[Instruction], report: Report) -> None:
    """Each target: its user, and whether somebody sees when it is not healthy."""
    stages: dict[str, list[Instruction]] = {}
    based_on = []
    for instruction in instructions:
        if instruction.word == "FROM":
            source, _, name = re.sub(r"--\S+ ", "", instruction.text).partition(" AS ")
            stages[name or source] = [*stages.get(source, []), instruction]
            based_on.append(source)
            current = name or source
        elif stages:
            stages[current].append(instruction)
    for name, stage in stages.items():
        if name in based_on:
            continue
        line = max(each.line for each in stage if each.word == "FROM")
        users = [each.text for each in stage if each.word == "USER"]
        if not users or users[-1].partition(":")[0] in ("root", "0"):
            report.add_line(file, line, f"target {name} runs as root; end it with USER 1000")
        if not any(each.word == "HEALTHCHECK" and each.text != "NONE" for each in stage):
            report.add_line(file, line, f"target {name} has no HEALTHCHECK; add one, so that a node that hangs is seen")
        report.images.update({f"{name}-cpu", f"{name}-cuda"})
