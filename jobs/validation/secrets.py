"""Keys that belong in no file: of AWS, of this project's own servers, of other services, and private ones."""

import re
from pathlib import Path

from jobs.validation.documents import Report

INSTEAD = "take it out, make a new one, and give roles to nodes and pods, or name a Secret"
PATTERNS = {
    "an AWS access key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": r"AWS_SECRET_ACCESS_KEY['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9/+]{8,}",
    "an API key of a PixelLM server": r"\bpxl_[A-Za-z0-9_-]{20,}",
    "a token of Ray": r"RAY_AUTH_TOKEN['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9-]{8,}",
    "an API key": r"\b(sk-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}


def check_secrets(file: Path, report: Report) -> None:
    """Every line of a file."""
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        for what, pattern in PATTERNS.items():
            if re.search(pattern, line):
                report.add_line(file, number, f"this is {what}; {INSTEAD}")
