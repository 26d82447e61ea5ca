"""YAML and JSON files with the line of each value, and what is found wrong in them: `file:line: what is wrong; what to write instead`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pixellm.errors import YamlError
from pixellm.plain_yaml import decode_yaml, describe_double, find_doubles, to_yaml_error
from pixellm.settings import find_problems

Place = tuple[int | str, ...]  # the keys and indices that lead to a value


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong, and what to write instead."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}"


@dataclass(frozen=True)
class Document:
    """One document of a file: plain values, and the line on which each begins."""

    file: Path
    values: Any
    lines: dict[Place, int]

    def line(self, *place: int | str) -> int:
        """Of the value at `place`, or of the deepest that holds it."""
        return next(self.lines[place[:end]] for end in range(len(place), -1, -1) if place[:end] in self.lines)

    def where(self, place: Place) -> tuple[Path, int]:
        """File and line of `place`."""
        return self.file, self.line(*place)

    def at(self, *place: int | str, default: Any = None) -> Any:
        """The value there, or `default` where something of the way is missing or the value is of another type than a default."""
        value = self.values
        for key in place:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return default
        return value if default is None or isinstance(value, type(default)) else default

    def entries(self, *place: int | str) -> Iterator[tuple[Place, dict[str, Any]]]:
        """The place and the value of each mapping in the list there; what is something else is told by a schema."""
        for index, value in enumerate(self.at(*place, default=[])):
            if isinstance(value, dict):
                yield (*place, index), value

    @property
    def name(self) -> str:
        """Kind and name of a Kubernetes object."""
        return f"{self.at('kind')} {self.at('metadata', 'name')}"


@dataclass
class Report:
    """What was found, what could not be checked and why, and all documents, for the checks across files."""

    crds: Path | None = None
    findings: set[Finding] = field(default_factory=set)
    unchecked: dict[str, None] = field(default_factory=dict)
    documents: list[Document] = field(default_factory=list)
    images: set[str] = field(default_factory=set)  # that the Dockerfiles make
    num_files: int = 0

    def add(self, document: Document, place: Place, what: str) -> None:
        """One finding at the line of `place`."""
        file, line = document.where(place)
        self.findings.add(Finding(str(file), line, what))

    def add_line(self, file: Path, line: int, what: str) -> None:
        """One finding at a line."""
        self.findings.add(Finding(str(file), line, what))

    def add_problems(self, document: Document, model: type[BaseModel], place: Place = (), values: Any = None) -> bool:
        """A finding for each problem of the values at `place`, or of these `values`, as a `model`; whether there was none."""
        problems = find_problems(model, document.at(*place) if values is None else values)
        for within, problem in problems:
            self.add(document, (*place, *within), ": ".join(filter(None, [".".join(map(str, within)), problem])))
        return not problems


def read_documents(file: Path, report: Report, text: str | None = None, first_line: int = 1) -> list[Document]:
    """The documents of a file, or of a `text` in it that begins at `first_line`. What is no YAML, or has a key twice, is a finding."""
    documents = []
    try:
        for node in yaml.compose_all(decode_yaml(file.read_bytes(), str(file)) if text is None else text, Loader=yaml.SafeLoader):
            if node is None:
                continue
            for key, first, line in find_doubles(node):
                report.add_line(file, line + first_line - 1, describe_double(key, first + first_line - 1, line + first_line - 1))
            lines = {place: line + first_line for place, line in _walk(node)}
            documents.append(Document(file, yaml.SafeLoader("").construct_document(node), lines))
    except yaml.YAMLError as error:
        problem = to_yaml_error(error, str(file))
        report.add_line(file, problem.line + first_line - 1, problem.what)
    except YamlError as problem:
        report.add_line(file, problem.line, problem.what)
    return documents


def read_text_at(document: Document, place: Place, report: Report) -> list[Document]:
    """The documents of a text inside a document, such as `key: |` and lines of YAML below it."""
    text, (file, line) = document.at(*place), document.where(place)
    return read_documents(file, report, text, line + 1) if isinstance(text, str) else []


def _walk(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, int]]:
    yield place, node.start_mark.line
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, (*place, index))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            for inner, line in _walk(value, (*place, key.value)):
                # A key's own line, which is the one to look at when the value begins below it.
                yield inner, key.start_mark.line if len(inner) == len(place) + 1 else line


def find_all(value: Any, key: str, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value below `value` that has this key, with its place."""
    items: Iterable[tuple[int | str, Any]] = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for each, inner in items:
        if each == key:
            yield (*place, each), inner
        yield from find_all(inner, key, (*place, each))
