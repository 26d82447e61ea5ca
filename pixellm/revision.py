"""Which code this is: a checkpoint and a benchmark's result both say it."""

import os
import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """Revision of the code: $PIXELLM_GIT_REVISION, else what git says of this file's folder (`-dirty` after changes), else None."""
    if revision := os.environ.get("PIXELLM_GIT_REVISION"):
        return revision
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
