"""Ray's token: no file turns it off. What has to turn it on is checked with the files that start Ray (`manifests`, `ray_up`)."""

import re
from pathlib import Path

from jobs.validation.documents import Document, Report, find_all

VARIABLE = "RAY_AUTH_MODE"
WHY = "without the token whoever reaches a node runs code on it; write token, or leave it out"
ASSIGNED = re.compile(rf"{VARIABLE}[\"']?(?:=|\s*:\s*)[\"']?(?!token\b)(\w*)", re.IGNORECASE)
UNSET = re.compile(rf"\bunset\b[^;&|]*\b{VARIABLE}\b|\benv\b.*\s-u\s*{VARIABLE}\b")


def check_lines(file: Path, report: Report) -> None:
    """Every line of a file, in whatever form it has: YAML, a shell command, a Dockerfile's ENV."""
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        text = line.partition("#")[0]
        if found := ASSIGNED.search(text):
            report.add_line(file, number, f"{VARIABLE} is {found[1] or 'empty'}: {WHY}")
        elif UNSET.search(text):
            report.add_line(file, number, f"{VARIABLE} is unset: {WHY}")


def check_variables(document: Document, report: Report) -> None:
    """Entries with `name` and `value`, as containers have them."""
    for place, variables in find_all(document.values, "env"):
        for index, each in enumerate(variables if isinstance(variables, list) else ()):
            if isinstance(each, dict) and each.get("name") == VARIABLE and str(each.get("value")).lower() != "token":
                report.add(document, (*place, index), f"{VARIABLE} is {each.get('value')}: {WHY}")
