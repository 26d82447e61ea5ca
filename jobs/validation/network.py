"""Network policies of an overlay: each Ray pod is behind one, and none opens the ports of Serve's replicas to others.

A replica listens on ports that the system chooses and runs what it unpickles there; Ray's token stands before that, and so do these.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from jobs.validation.documents import Document, Place, Report, find_all

KUBERAY = "ray.io/v1"
FIRST_PORT_OF_REPLICAS = 30_000  # Linux hands out 32768 and more; KubeRay's node ports begin here


def check_network(objects: Sequence[Document], report: Report) -> None:
    """All objects of an overlay, which are in one namespace."""
    policies = [each for each in objects if each.at("kind") == "NetworkPolicy" and "Ingress" in each.at("spec", "policyTypes",
                                                                                                       default=["Ingress"])]
    opening: dict[tuple[str, Place], tuple[Document, str]] = {}
    for each in objects:
        if each.at("apiVersion") != KUBERAY:
            continue
        for place, labels in _pods(each):
            selecting = [policy for policy in policies if _selects(policy.at("spec", "podSelector", default={}), labels)]
            if not selecting:
                report.add(each, place, f"no NetworkPolicy selects these pods of {each.name}: all of Kubernetes reaches the ports of their "
                           "Serve replicas, which run what they unpickle; add one that lets the cluster's own pods in (base/network.yaml)")
            for policy in selecting:
                for rule, opened in _openings(policy):
                    opening[(policy.name, rule)] = policy, f"{opened} of {each.name}"
    for (name, rule), (policy, opened) in opening.items():
        report.add(policy, rule, f"{name} opens {opened} to others than the cluster's own pods, and with them those of Serve's replicas, "
                   "which run what they unpickle; name the ports that they need")


def _pods(document: Document) -> Iterator[tuple[Place, dict[str, Any]]]:
    for place, template in find_all(document.values, "template"):
        if "spec" in (template if isinstance(template, dict) else {}):
            labels = document.at(*place, "metadata", "labels", default={})
            yield place, labels


def _selects(selector: dict[str, Any], labels: dict[str, Any]) -> bool:
    """As Kubernetes does it. Labels of KubeRay's own are on each of its pods, with values that no file knows."""
    def fits(key: str, operator: str, values: list[Any]) -> bool:
        if str(key).startswith("ray.io/"):
            return True
        return {"In": labels.get(key) in values, "NotIn": labels.get(key) not in values, "Exists": key in labels,
                "DoesNotExist": key not in labels}.get(operator, False)

    wanted = selector.get("matchLabels") or {}
    rules = [each for each in selector.get("matchExpressions") or () if isinstance(each, dict)]
    return (all(fits(key, "In", [value]) for key, value in (wanted.items() if isinstance(wanted, dict) else ()))
            and all(fits(str(each.get("key")), str(each.get("operator")), each.get("values") or []) for each in rules))


def _openings(policy: Document) -> Iterator[tuple[Place, str]]:
    """Rules that let others reach the ports of replicas: the place, and what it opens."""
    for place, rule in policy.entries("spec", "ingress"):
        peers = rule.get("from")
        own = isinstance(peers, list) and bool(peers) and all(
            isinstance(peer, dict) and peer.get("podSelector") and not {"namespaceSelector", "ipBlock"} & set(peer) for peer in peers)
        if own:
            continue
        ports = [each for each in rule.get("ports") or () if isinstance(each, dict)]
        if not ports or any("port" not in each for each in ports):
            yield place, "all ports"
        for each in ports:
            last = each.get("endPort")
            if isinstance(last, int) and last >= FIRST_PORT_OF_REPLICAS:
                yield place, f"ports {each.get('port')} to {last}"
