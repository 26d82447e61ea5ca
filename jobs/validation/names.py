"""Names within an overlay: what one object calls by its name is there, and what selects pods selects some."""

import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from jobs.validation.documents import Document, Place, Report, find_all
from pixellm.settings import did_you_mean

# A key that names another object, the kind of it, and where below the key the name is.
REFERENCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "serviceAccountName": ("ServiceAccount", ()), "claimName": ("PersistentVolumeClaim", ()), "serviceName": ("Service", ()),
    "configMapRef": ("ConfigMap", ("name",)), "configMapKeyRef": ("ConfigMap", ("name",)), "secretRef": ("Secret", ("name",)),
    "secretKeyRef": ("Secret", ("name",)), "secretName": ("Secret", ()), "clusterSelector": ("RayCluster", ("ray.io/cluster",)),
}


def check_names(overlay: Document, objects: Sequence[Document], secrets: list[str], report: Report) -> None:
    """All objects of an overlay. `secrets` are those that people make by hand."""
    names: dict[str, list[str]] = {"Secret": list(secrets)}
    for each in objects:
        kind, name = str(each.at("kind")), str(each.at("metadata", "name"))
        if name in names.setdefault(kind, []):
            report.add(each, ("metadata", "name"), f"there are two of {kind} {name} in {overlay.file.parent}; give them different names")
        names[kind].append(name)
    for each in objects:
        for key, (kind, way) in REFERENCES.items():
            for place, value in find_all(each.values, key):
                named = value if not way else value.get(way[0]) if isinstance(value, dict) else None
                if isinstance(named, str) and named not in names.get(kind, ()):
                    made = "; name it in the annotation pixellm.io/secrets of the overlay" if kind == "Secret" else ""
                    near = did_you_mean(named, names.get(kind, ()), "there are")
                    report.add(each, (*place, *way), f"there is no {kind} {named!r}; {near}{made}")
    _check_namespace(overlay, names, report)
    pods = [labels for each in objects for labels in _pod_labels(each.values)]
    for each in objects:
        _check_selectors(each, pods, report)
        _check_addresses(each, objects, names, report)


def _check_namespace(overlay: Document, names: dict[str, list[str]], report: Report) -> None:
    namespace = overlay.at("namespace")
    if names.get("Namespace") and namespace not in names["Namespace"]:
        report.add(overlay, ("namespace",), f"namespace is {namespace}, but the overlay makes {names['Namespace'][0]}; write the same")


def _pod_labels(value: Any) -> Iterator[dict[str, str]]:
    for _, template in find_all(value, "template"):
        if isinstance(template, dict) and "spec" in template:
            labels = template["metadata"].get("labels") if isinstance(template.get("metadata"), dict) else None
            yield labels if isinstance(labels, dict) else {}


def _check_selectors(document: Document, pods: list[dict[str, str]], report: Report) -> None:
    """Services, network policies, disruption budgets, and a workload's own selector."""
    selectors: list[tuple[Place, Any]] = []
    for key in ("podSelector", "labelSelector", "selector"):
        selectors += find_all(document.values, key)
    for place, selector in selectors:
        if not isinstance(selector, dict) or "namespaceSelector" in document.at(*place[:-1], default={}):
            continue
        plain = not {"matchLabels", "matchExpressions"} & set(selector)
        labels = selector if plain else document.at(*place, "matchLabels", default={})
        wanted = [(key, [value]) for key, value in labels.items()]
        wanted += [(rule.get("key"), document.at(*at, "values", default=[])) for at, rule in document.entries(*place, "matchExpressions")
                   if rule.get("operator") == "In"]
        for key, values in wanted:
            there = sorted({str(pod[key]) for pod in pods if key in pod})
            for value in values:
                if value not in there:
                    report.add(document, place, f"no pod has the label {key}={value}; {did_you_mean(str(value), there, 'there are')}")


def _check_addresses(document: Document, objects: Sequence[Document], names: dict[str, list[str]], report: Report) -> None:
    """Addresses of services in the same namespace: a name without dots, and its port."""
    found = [(place, str(value)) for key in ("redisAddress", "AWS_ENDPOINT_URL") for place, value in find_all(document.values, key)]
    for place, address in found:
        host, port = (urlsplit(address if "//" in address else f"//{address}")).hostname or "", re.search(r":(\d+)/?$", address)
        if "." in host:
            continue
        if host not in names.get("Service", ()):
            near = did_you_mean(host, names.get("Service", ()), "there are")
            report.add(document, place, f"{address}: there is no Service {host!r}; {near}")
            continue
        service = next(each for each in objects if each.name == f"Service {host}")
        ports = [str(each.get("port")) for _, each in service.entries("spec", "ports")]
        if port and port[1] not in ports:
            report.add(document, place, f"{address}: Service {host} has port {', '.join(ports)}; write that")
