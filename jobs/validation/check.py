"""Finds out what each file is, by its content and its folder, and has it checked by the module for its kind."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jobs.validation.documents import Document, Report, read_documents
from jobs.validation.runs import WORDS, first_word
from jobs.validation.secrets import check_secrets
from jobs.validation.token import check_lines, check_variables
from pixellm.errors import ConfigError

# Module and function of each kind of document. Modules are loaded when there is such a file: some need what only `.[dev]` installs.
CHECKS = {
    "run": "runs:check_run", "deployment": "runs:check_deployment", "serve": "runs:check_serve", "ray up": "ray_up:check_cluster",
    "kustomization": "kustomize:check_kustomization", "patch": "kustomize:check_patch", "manifest": "manifests:check_manifest",
    "rules": "prometheus:check_rules", "scrape": "prometheus:check_scrape", "board": "grafana:check_board",
    "provisioning": "grafana:check_provisioning",
}
KINDS = ("a run is called JOB_….yaml (" + ", ".join(f"{word}_" for word in WORDS) + "), a deployment lies in serve/configs; ray up, "
         "Kubernetes, Ray Serve, Prometheus and Grafana files are known by their keys")
SUFFIXES = {".yaml", ".yml", ".json"}


def validate(paths: list[str], crds: str | None = None) -> Report:
    """All files below `paths`. `crds` is a folder with KubeRay's CRDs. Raises ConfigError for a path that does not exist."""
    report = Report(crds=Path(crds) if crds else None)
    if report.crds and not report.crds.is_dir():
        raise ConfigError(f"crds={crds} is no folder; give the one that holds KubeRay's rayclusters.crd.yaml and the others")
    for file in _files(paths):
        report.num_files += 1
        check_secrets(file, report)
        check_lines(file, report)
        if is_dockerfile(file):
            _call("docker:check_dockerfile", file, report)
            continue
        documents = read_documents(file, report)
        if not documents and not any(finding.file == str(file) for finding in report.findings):
            report.add_line(file, 1, f"there is nothing in it; {KINDS}")
        for document in documents:
            check_document(document, report)
    check_together(report)
    return report


def check_together(report: Report) -> None:
    """What is only seen when all documents were read."""
    for check in ("runs:check_commands", "agreement:check_agreement"):
        _call(check, report)


def is_dockerfile(file: Path) -> bool:
    """`Dockerfile`, `Dockerfile.NAME` and `NAME.Dockerfile`."""
    return "Dockerfile" in (file.name, file.stem, file.suffix[1:])


def _files(paths: list[str]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and (file.suffix in SUFFIXES or is_dockerfile(file)))
        else:
            raise ConfigError(f"{path} does not exist; name files or folders that do")


def check_document(document: Document, report: Report) -> None:
    """One document, by its kind."""
    kind = kind_of(document)
    report.documents.append(document)
    check_variables(document, report)
    if kind is None:
        report.add(document, (), f"this is none of the files that are known here; {KINDS}")
    else:
        _call(CHECKS[kind], document, report)


def kind_of(document: Document) -> str | None:
    """The kind of a document, a key of `CHECKS`."""
    values, folder = document.values, document.file.resolve().parent
    if isinstance(values, list) and all(isinstance(each, dict) and "path" in each for each in values):
        return "patch"
    if not isinstance(values, dict):
        return None
    if document.file.name == "kustomization.yaml":
        return "kustomization"
    if "metadata" in values and {"kind", "apiVersion"} & set(values):
        return "manifest"
    for kind, keys in {"ray up": {"cluster_name", "available_node_types", "provider"}, "rules": {"groups"}, "scrape": {"scrape_configs"},
                       "board": {"panels"}, "provisioning": {"datasources", "providers"}, "serve": {"applications"}}.items():
        if keys & set(values):
            return kind
    if folder.parts[-2:] == ("serve", "configs"):
        return "deployment"
    if first_word(document.file) in WORDS:
        return "run"
    return "deployment" if "model" in values else None


def _call(check: str, *arguments: object) -> None:
    module, _, function = check.partition(":")
    try:
        found: Callable[..., None] = getattr(importlib.import_module(f"jobs.validation.{module}"), function)
    except ModuleNotFoundError as error:
        report = arguments[-1]
        assert isinstance(report, Report)
        report.unchecked[f"{module}: needs {error.name}; pip install '.[dev]'"] = None
        return
    found(*arguments)
