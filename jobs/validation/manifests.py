"""Kubernetes manifests: the schemas of their kinds with no unknown keys, and what KubeRay's objects hold that no schema looks into."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator
from kubernetes_validate.utils import latest_version, schema_contents
from ray.runtime_env import RuntimeEnv
from referencing import Registry, Resource

from jobs.validation.documents import Document, Place, Report, find_all, read_text_at
from jobs.validation.pods import check_pod
from jobs.validation.runs import check_serve
from jobs.validation.schemas import add_schema_errors, make_strict
from pixellm.settings import did_you_mean

KUBERAY = "ray.io/v1"
CRD_FILES = "*.crd.yaml"
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
CRON_FIELD = r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*"


def check_manifest(document: Document, report: Report) -> None:
    """One object."""
    kind, version = str(document.at("kind")), str(document.at("apiVersion"))
    if not (document.at("metadata", "name") or document.at("metadata", "generateName")):
        report.add(document, ("metadata",), f"{kind} has no metadata.name; give it one")
    validator = _validator(kind, version, document, report)
    if validator is not None:
        add_schema_errors(document, validator, report)
    for place, containers in find_all(document.values, "containers"):
        if isinstance(containers, list):
            check_pod(document, place[:-1], report)
    if version == KUBERAY:
        _check_ray(document, kind, report)


@cache
def _crds(folder: Path) -> dict[str, Validator]:
    validators: dict[str, Validator] = {}
    for file in folder.glob(CRD_FILES):
        definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        for version in definition["versions"]:
            schema = make_strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            validators[f"{definition['group']}/{version['name']} {definition['names']['kind']}"] = Draft202012Validator(schema)
    return validators


@cache
def _core(kind: str, version: str) -> Validator | None:
    """A kind of Kubernetes itself, in the strict schemas that kubernetes-validate brings."""
    folder = f"kubernetes-json-schema/v{latest_version()}-local-strict"
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", version)
    try:
        schema = schema_contents(f"{folder}/{kind.lower()}-{group}.json", latest_version())
    except OSError:
        return None
    registry: Registry[Any] = Registry()
    for contents in (schema, schema_contents(f"{folder}/_definitions.json", latest_version())):
        registry = Resource.from_contents(contents) @ registry
    return Draft202012Validator(schema, registry=registry)


def _validator(kind: str, version: str, document: Document, report: Report) -> Validator | None:
    if "." in version.partition("/")[0] and not version.partition("/")[0].endswith(".k8s.io"):
        if report.crds is None:
            report.unchecked[f"keys of {version} {kind}: no schema; give the folder of its CRDs as crds=FOLDER"] = None
            return None
        known = _crds(report.crds)
        if f"{version} {kind}" not in known:
            near = did_you_mean(f"{version} {kind}", known, "kinds")
            report.add(document, ("kind",), f"{version} {kind} is in no CRD of {report.crds}; {near}")
        return known.get(f"{version} {kind}")
    validator = _core(kind, version)
    if validator is None:
        report.add(document, ("kind",), f"Kubernetes {latest_version()} has no {kind} in {version}; correct kind or apiVersion")
    return validator


def _check_ray(document: Document, kind: str, report: Report) -> None:
    for place, _ in find_all(document.values, "serveConfigV2"):
        for inner in read_text_at(document, place, report):
            check_serve(inner, report)
    for place, _ in find_all(document.values, "runtimeEnvYAML"):
        for inner in read_text_at(document, place, report):
            _check_runtime_env(inner, report)
    for place in _ray_clusters(document, kind):
        _check_ray_cluster(document, place, report)
    schedule = document.at("spec", "schedule")
    if schedule is not None and not re.fullmatch(rf"{CRON_FIELD}( {CRON_FIELD}){{4}}|@\w+", str(schedule)):
        report.add(document, ("spec", "schedule"), f"{schedule!r} is no schedule; write minute, hour, day, month and weekday: 30 2 * * *")
    upgrade = document.at("spec", "upgradeStrategy", "type")
    if kind == "RayService" and upgrade is not None:
        _check_upgrade(document, str(upgrade), report)


def _check_runtime_env(document: Document, report: Report) -> None:
    for key in document.values if isinstance(document.values, dict) else ():
        if key not in RuntimeEnv.known_fields:
            report.add(document, (key,), f"{key}: unknown key of a runtime environment; "
                       + did_you_mean(str(key), sorted(RuntimeEnv.known_fields), "known keys"))


def _ray_clusters(document: Document, kind: str) -> list[Place]:
    places: list[Place] = [("spec",)] if kind == "RayCluster" else []
    for key in ("rayClusterConfig", "rayClusterSpec"):
        places += [place for place, _ in find_all(document.values, key)]
    return places


def _check_ray_cluster(document: Document, place: Place, report: Report) -> None:
    if document.at(*place, "authOptions", "mode") != "token" and not _is_closed_network(document):
        report.add(document, (*place, "authOptions"), "whoever reaches a pod could run code on it; write authOptions: {mode: token, …}")
    if document.at(*place, "enableInTreeAutoscaling") and document.at(*place, "autoscalerOptions", "version") != "v2":
        report.add(document, (*place, "autoscalerOptions"), "the autoscaler is not v2; write autoscalerOptions: {version: v2}")
    names: list[object] = []
    for at, group in document.entries(*place, "workerGroupSpecs"):
        lowest, highest = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        if isinstance(lowest, int) and isinstance(highest, int) and lowest > highest:
            report.add(document, (*at, "minReplicas"), f"minReplicas is {lowest}, maxReplicas {highest}; the second is the most")
        if group.get("groupName") in names:
            report.add(document, (*at, "groupName"), f"two groups are called {group.get('groupName')}; give each a name of its own")
        names.append(group.get("groupName"))


def _is_closed_network(document: Document) -> bool:
    """Tell whether the served application says that it may run without a token (`allow_cluster_without_token`)."""
    inner = [each for place, _ in find_all(document.values, "serveConfigV2") for each in read_text_at(document, place, Report())]
    return any(application.get("args", {}).get("allow_cluster_without_token") is True
               for each in inner for _, application in each.entries("applications") if isinstance(application.get("args"), dict))


def _check_upgrade(document: Document, upgrade: str, report: Report) -> None:
    place = ("spec", "upgradeStrategy")
    if upgrade not in UPGRADES:
        report.add(document, (*place, "type"), f"{upgrade!r} is no way to upgrade; {did_you_mean(upgrade, UPGRADES, 'they are')}")
    if upgrade != "NewClusterWithIncrementalUpgrade":
        return
    options = document.at(*place, "clusterUpgradeOptions")
    if not isinstance(options, dict):
        report.add(document, place, "an incremental upgrade needs clusterUpgradeOptions: gatewayClassName, stepSizePercent, …")
        return
    for key in ("maxSurgePercent", "stepSizePercent"):
        value = options.get(key, 1)
        if isinstance(value, int) and not 1 <= value <= 100:
            report.add(document, (*place, "clusterUpgradeOptions", key), f"{key} is {value}; write a share from 1 to 100")
    if not document.at("spec", "rayClusterConfig", "enableInTreeAutoscaling"):
        report.add(document, place, "an incremental upgrade needs the autoscaler; write rayClusterConfig.enableInTreeAutoscaling: true")
