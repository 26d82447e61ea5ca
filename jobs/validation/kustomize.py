"""Overlays: every file that a kustomization names is there, and what comes out of it is checked as it will be applied.

Follows `resources`, `namespace`, `images` and `patches` in JSON patch form. Where a kustomization uses more it says so, and builds nothing.
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.validation.documents import Document, Place, Report, find_all, read_documents
from jobs.validation.manifests import check_manifest
from jobs.validation.names import check_names
from jobs.validation.network import check_network
from jobs.validation.token import check_variables
from pixellm.settings import StrictModel, build_config, did_you_mean

NOT_FOLLOWED = {
    "bases", "buildMetadata", "commonAnnotations", "commonLabels", "components", "configMapGenerator", "configurations", "crds",
    "generatorOptions", "generators", "helmCharts", "helmGlobals", "labels", "namePrefix", "nameSuffix", "openapi", "patchesJson6902",
    "patchesStrategicMerge", "replacements", "replicas", "secretGenerator", "sortOptions", "transformers", "validators", "vars",
}


class Target(StrictModel):
    """Which objects a patch changes."""

    kind: str
    name: str


class Patch(StrictModel):
    """A JSON patch, in a file of its own or here."""

    target: Target
    path: str | None = None
    patch: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "Patch":
        if (self.path is None) == (self.patch is None):
            raise ValueError("give either `path`, a file, or `patch`, the operations themselves")
        return self


class Image(StrictModel):
    """Another registry or version for an image."""

    name: str
    newName: str | None = None
    newTag: str | None = None


class Operation(StrictModel):
    """One change of a JSON patch."""

    op: Literal["add", "replace", "remove"]
    path: str = Field(pattern="^/")
    value: Any = None


class Kustomization(StrictModel):
    """What is followed here."""

    apiVersion: Literal["kustomize.config.k8s.io/v1beta1"]
    kind: Literal["Kustomization"]
    metadata: dict[str, Any] = Field(default={})
    namespace: str | None = None
    resources: tuple[str, ...]
    patches: tuple[Patch, ...] = ()
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Built(Document):
    """An object after its overlay's changes; what is wrong where a patch has changed it is the patch's."""

    patched: list[tuple[Place, Path, int]] = field(default_factory=list)

    def where(self, place: Place) -> tuple[Path, int]:
        for changed, file, line in reversed(self.patched):
            if place[:len(changed)] == changed:
                return file, line
        return self.file, self.line(*place)


def check_kustomization(document: Document, report: Report) -> None:
    """One kustomization with all below it. Names are only held against each other where there is a namespace: in an overlay."""
    built = build(document, report)
    if built is None or not document.at("namespace"):
        return
    for each in built:
        if each.patched:
            check_manifest(each, report)
            check_variables(each, report)
    secrets = str(document.at("metadata", "annotations", "pixellm.io/secrets", default="")).split()
    check_names(document, built, secrets, report)
    check_network(built, report)


def check_patch(document: Document, report: Report) -> None:
    """A file of JSON patch operations; where they fit is seen when the overlay that names it is built."""
    for index in range(len(document.values)):
        report.add_problems(document, Operation, (index,))


def build(document: Document, report: Report) -> list[Built] | None:
    """The objects of a kustomization, or None where something is not followed or wrong."""
    folder = document.file.parent
    more = NOT_FOLLOWED & set(document.values)
    if more:
        report.unchecked[f"{document.file}: overlays with {', '.join(sorted(more))} are not built here; look at `kubectl kustomize`"] = None
        return None
    if not report.add_problems(document, Kustomization):
        return None
    settings = build_config(Kustomization, document.values)
    objects: list[Built] = []
    for index, name in enumerate(settings.resources):
        path = Path(os.path.normpath(folder / name))
        if not path.exists():
            there = [each.name for each in folder.iterdir()]
            report.add(document, ("resources", index), f"{name} does not exist; {did_you_mean(name, there, 'in the folder are')}")
            return None
        quiet = Report()  # each file has its own findings, once
        for each in read_documents(path / "kustomization.yaml" if path.is_dir() else path, quiet):
            if path.is_dir():
                inner = build(each, report)
                if inner is None:
                    return None
                objects += inner
            elif isinstance(each.values, dict):
                objects.append(Built(each.file, _without_aliases(each.values), each.lines))
    for index, patch in enumerate(settings.patches):
        _apply(document, index, patch, objects, report)
    for each in objects:
        if settings.namespace and each.at("kind") != "Namespace" and isinstance(each.at("metadata"), dict):
            each.values["metadata"]["namespace"] = settings.namespace
        for place, image in find_all(each.values, "image"):
            each.at(*place[:-1])["image"] = _renamed(str(image), settings.images)
    used = {str(image).rpartition(":")[0] for each in objects for _, image in find_all(each.values, "image")}
    for index, image in enumerate(settings.images):
        if (image.newName or image.name) not in used:
            near = did_you_mean(image.name, sorted(used), "they have")
            report.add(document, ("images", index), f"no container has the image {image.name}; {near}")
    return objects


def _without_aliases(values: Any) -> Any:
    """A copy in which what YAML's anchors share is there as often as it is named: a change of one is not one of the others."""
    if isinstance(values, dict):
        return {key: _without_aliases(value) for key, value in values.items()}
    return [_without_aliases(value) for value in values] if isinstance(values, list) else values


def _renamed(image: str, changes: tuple[Image, ...]) -> str:
    name, _, tag = image.rpartition(":")
    change = next((each for each in changes if each.name == name), None)
    return image if change is None else f"{change.newName or name}:{change.newTag or tag}"


def _apply(document: Document, index: int, patch: Patch, objects: list[Built], report: Report) -> None:
    place: Place = ("patches", index)
    targets = [at for at, each in enumerate(objects) if each.name == f"{patch.target.kind} {patch.target.name}"]
    if not targets:
        names = [each.name for each in objects]
        wanted = f"{patch.target.kind} {patch.target.name}"
        report.add(document, (*place, "target"), f"there is no {wanted} to patch; {did_you_mean(wanted, names, 'there are')}")
    for source in _operations(document, place, patch, report):
        for number, operation in enumerate(source.values if isinstance(source.values, list) else ()):
            if not report.add_problems(source, Operation, (number,)):
                continue
            for at in targets:
                changed = copy.deepcopy(objects[at].values)
                try:
                    keys = _change(changed, Operation(**operation))
                except (KeyError, IndexError, TypeError, ValueError):
                    report.add(source, (number, "path"), f"{operation['path']} is not in {objects[at].name}; correct the path")
                    continue
                patched = [*objects[at].patched, (keys, *source.where((number, "value")))]
                objects[at] = replace(objects[at], values=changed, patched=patched)


def _operations(document: Document, place: Place, patch: Patch, report: Report) -> Iterator[Document]:
    if patch.path is None:
        yield from read_documents(document.file, report, patch.patch, document.line(*place, "patch") + 1)
    elif (file := document.file.parent / patch.path).is_file():
        yield from read_documents(file, Report())
    else:
        report.add(document, (*place, "path"), f"{patch.path} does not exist; "
                   + did_you_mean(patch.path, [each.name for each in document.file.parent.iterdir()], "in the folder are"))


def _change(values: Any, operation: Operation) -> Place:
    """Does what a JSON patch's operation says (RFC 6902), and returns the place. Raises what a wrong path raises."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in operation.path[1:].split("/")]
    place: list[int | str] = []
    for part in way:
        key: int | str = int(part) if isinstance(values, list) else part
        values = values[key]
        place.append(key)
    if isinstance(values, list) and operation.op == "add":
        key = len(values) if last == "-" else int(last)
        values.insert(key, operation.value)
        return (*place, key)
    key = int(last) if isinstance(values, list) else last
    if operation.op != "add":
        values[key]  # has to be there
    if operation.op == "remove":
        del values[key]
    else:
        values[key] = operation.value
    return (*place, key)
