"""Lines on the console."""

import sys


def say(text: str) -> None:
    """A console line. Not `print`: Ray Train replaces that in its workers, and each line would come twice."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def format_duration(seconds: float) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
