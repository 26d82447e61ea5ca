"""Code blocks of the documents, each with the mark in the line above it: `<!-- run: KIND -->` or `<!-- not run: REASON -->`.

Kinds: `shell` and `python` work on any Ray, `alone` where none runs yet, `server` and `server python` need the model that ships at
127.0.0.1:8000, `background` stays running for the blocks after it, `checkout` runs in a checkout only. Blocks of a file run in their
order, in one folder.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "platform/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
KINDS = ("shell", "python", "server", "server python", "background", "checkout", "alone")
_MARK = re.compile(r"<!-- (run|not run): (.+?) -->")
_COMMAND = re.compile(r"(python|pip|make|ray|curl|export|kubectl|aws|pixellm|from|import|git|docker|\.) ")
_LIST_ITEM = re.compile(r"\s*([-*]|\d+\.) ")


@dataclass(frozen=True)
class Block:
    """`kind` is one of KINDS, or None for a block that is not run, with the `reason`; both None for one without a mark."""

    document: str
    line: int
    text: str
    kind: str | None
    reason: str | None

    @property
    def place(self) -> str:
        """`file:line` of its first line."""
        return f"{self.document}:{self.line}"

    def runs_in(self, mode: str) -> bool:
        """Tell whether the block is run with no Ray (`auto`), or on a head that serves a model (`head`)."""
        kind = self.kind or "none"
        return kind != "none" and not (kind.startswith("server") if mode == "auto" else kind == "alone")

    @property
    def is_command(self) -> bool:
        """False for output, layouts and configuration that a document shows."""
        return _COMMAND.match(self.text) is not None


def read_blocks(document: str) -> list[Block]:
    """Blocks that are indented by four spaces, after an empty line and outside of lists, in their order."""
    lines = (ROOT / document).read_text().splitlines()
    blocks: list[Block] = []
    start, in_list = None, False
    for number, line in enumerate([*lines, "end"]):
        if start is None:
            in_list = _LIST_ITEM.match(line) is not None or (in_list and (line.startswith(" ") or not line))
            if line.startswith("    ") and not in_list and not (lines[number - 1] if number else "").strip():
                start = number
        elif line.strip() and not line.startswith("    "):
            blocks.append(_build(document, lines, start, number))
            start, in_list = None, _LIST_ITEM.match(line) is not None
    return blocks


def _build(document: str, lines: list[str], start: int, end: int) -> Block:
    text = "\n".join(line[4:] for line in lines[start:end]).rstrip()
    above = next((line for line in reversed(lines[:start]) if line.strip()), "")
    mark = _MARK.fullmatch(above.strip())
    is_run = mark is not None and mark.group(1) == "run"
    return Block(document, start + 1, text, mark.group(2) if mark and is_run else None, mark.group(2) if mark and not is_run else None)


def read_all() -> list[Block]:
    """The command blocks of all documents."""
    return [block for document in DOCUMENTS if Path(ROOT / document).is_file() for block in read_blocks(document) if block.is_command]
