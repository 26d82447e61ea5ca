"""Pods, wherever a manifest holds one: who they run as, what they ask for, and names that belong together within them."""

import json
import re

from jobs.validation.documents import Document, Place, Report
from pixellm.settings import did_you_mean

QUANTITY = r"\d+(\.\d+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"
CONFINED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
NEEDED = {"requests": ("cpu", "memory"), "limits": ("memory",)}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def check_pod(document: Document, place: Place, report: Report) -> None:
    """The pod specification at `place`."""
    if document.at(*place, "securityContext", "runAsNonRoot") is not True:
        report.add(document, (*place, "securityContext"), "the pod may run as root; write securityContext: {runAsNonRoot: true, …}")
    if document.at(*place, "securityContext", "seccompProfile", "type") not in ("RuntimeDefault", "Localhost"):
        report.add(document, (*place, "securityContext"), "no seccomp profile; write seccompProfile: {type: RuntimeDefault}")
    volumes = [str(volume.get("name")) for _, volume in document.entries(*place, "volumes")]
    volumes += [str(document.at(*claim, "metadata", "name")) for claim, _ in document.entries(*place[:-2], "volumeClaimTemplates")]
    for kind in ("containers", "initContainers"):
        for container, _ in document.entries(*place, kind):
            _check_container(document, container, volumes, report)


def _check_container(document: Document, place: Place, volumes: list[str], report: Report) -> None:
    name, image = document.at(*place, "name"), str(document.at(*place, "image"))
    for key, value in CONFINED.items():
        if document.at(*place, "securityContext", key) != value:
            said = json.dumps(value).replace('"', "")
            report.add(document, (*place, "securityContext"), f"container {name}: securityContext lacks {key}: {said}")
    _check_resources(document, place, name, report)
    if "@sha256:" not in image and not re.search(r":(?!latest$)[\w.-]+$", image.rpartition("/")[2]):
        report.add(document, (*place, "image"), f"image {image!r} has no version; write name:VERSION, and not latest")
    for at, mount in document.entries(*place, "volumeMounts"):
        if mount.get("name") not in volumes:
            near = did_you_mean(str(mount.get("name")), volumes, "volumes of the pod")
            report.add(document, at, f"there is no volume {mount.get('name')!r}; {near}")
    ports = [str(port.get("name")) for _, port in document.entries(*place, "ports")]
    for probe in PROBES:
        for way in ("tcpSocket", "httpGet"):
            port = document.at(*place, probe, way, "port")
            if isinstance(port, str) and port not in ports:
                report.add(document, (*place, probe), f"{probe} asks port {port!r}; {did_you_mean(port, ports, 'ports of the container')}")


def _check_resources(document: Document, place: Place, container: str | None, report: Report) -> None:
    for which, needed in NEEDED.items():
        amounts = document.at(*place, "resources", which, default={})
        for name in needed:
            if name not in amounts:
                report.add(document, (*place, "resources"), f"container {container}: resources.{which} lacks {name}; "
                           "say what it needs, or it is ended first where nodes are full")
        for name, amount in amounts.items():
            if not re.fullmatch(QUANTITY, str(amount)):
                report.add(document, (*place, "resources", which, name), f"{name}: {amount!r} is no quantity; write 500m, 2 or 8Gi")
    asked, most = (document.at(*place, "resources", which, "nvidia.com/gpu") for which in NEEDED)
    if asked is not None and str(asked) != str(most):
        report.add(document, (*place, "resources"), f"requests {asked} GPUs but its limit is {most}; write the same twice")
